#include "call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const VERSIONS[] = {"0.3.1", "0.4.0", "1.0.0", "1.1.0"};

/* How long a pod waits for an agent: longer than the upgrade of one takes, shorter than the kubelet waits for
 * the runtime (4 minutes). One that may start without does not wait as long. */
enum { TIMEOUT_CLOSED_S = 90, TIMEOUT_OPEN_S = 10, TIMEOUT_MAX_S = 200 };

static bool variable_read(const char *name, const char **out)
{
    const char *value = getenv(name);
    *out = value != NULL ? value : "";
    for (const char *at = *out; *at != '\0'; at++)
        if (*at < 0x20 || *at > 0x7e || at - *out >= VARIABLE_MAX - 1)
            return false;
    return true;
}

bool environment_read(struct environment *environment)
{
    /* All of them: whoever is told of one that is wrong wants the others as they are. */
    bool good = variable_read("CNI_COMMAND", &environment->command);
    good = variable_read("CNI_CONTAINERID", &environment->container_id) && good;
    good = variable_read("CNI_NETNS", &environment->netns) && good;
    good = variable_read("CNI_IFNAME", &environment->ifname) && good;
    return variable_read("CNI_ARGS", &environment->args) && good;
}

bool container_id_check(const char *text)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    size_t length = strlen(text);
    if (length == 0 || length > 200 || strchr(letters, text[0]) == NULL)
        return false;
    for (const char *at = text; *at != '\0'; at++)
        if (strchr(letters, *at) == NULL && strchr("_.-", *at) == NULL)
            return false;
    return true;
}

bool argument_find(const char *args, const char *key, char *out, size_t size)
{
    size_t length = strlen(key);
    while (*args != '\0') {
        size_t pair = strcspn(args, ";");
        if (pair > length && args[length] == '=' && memcmp(args, key, length) == 0) {
            size_t value = pair - length - 1;
            if (value >= size)
                return false;
            memcpy(out, args + length + 1, value);
            out[value] = '\0';
            return true;
        }
        args += pair;
        if (*args == ';')
            args++;
    }
    return false;
}

const char *options_read(struct text configuration, struct options *options)
{
    if (!json_string(json_member(configuration, "socket"), options->socket, sizeof(options->socket)) ||
        options->socket[0] != '/')
        return "'socket' has to be the absolute path of the agent's socket, of at most 107 bytes";
    /* A word of a later version counts as closed: after a roll-back this program is there before its entry.
     */
    char policy[16] = "";
    struct text said = json_member(configuration, "on_failure");
    if (said.bytes != NULL && said.bytes[0] != '"')
        return "'on_failure' has to be closed, by-namespace or open";
    if (!json_string(said, policy, sizeof(policy)))
        policy[0] = '\0';
    options->open = strcmp(policy, "open") == 0;
    options->by_namespace = strcmp(policy, "by-namespace") == 0;
    options->open_namespaces = json_member(configuration, "open_namespaces");
    if (options->open_namespaces.bytes != NULL && options->open_namespaces.bytes[0] != '[')
        return "'open_namespaces' has to be a list of namespaces";
    options->timeout_seconds = 0;
    said = json_member(configuration, "timeout_seconds");
    if (said.bytes != NULL && !json_integer(said, 1, TIMEOUT_MAX_S, &options->timeout_seconds))
        return "'timeout_seconds' has to be a number from 1 to 200";
    return NULL;
}

bool options_open(const struct options *options, const char *pod_namespace)
{
    if (options->open)
        return true;
    size_t position = 0;
    char name[NAMESPACE_MAX];
    for (;;) {
        struct text element = json_element(options->open_namespaces, &position);
        if (element.bytes == NULL)
            return false;
        if (json_string(element, name, sizeof(name)) && strcmp(name, pod_namespace) == 0)
            return true;
    }
}

long options_patience(const struct options *options, bool open)
{
    if (options->timeout_seconds != 0)
        return options->timeout_seconds;
    return open ? TIMEOUT_OPEN_S : TIMEOUT_CLOSED_S;
}

bool version_known(struct text configuration)
{
    char version[16];
    if (!json_string(json_member(configuration, "cniVersion"), version, sizeof(version)))
        return false;
    for (size_t i = 0; i < sizeof(VERSIONS) / sizeof(VERSIONS[0]); i++)
        if (strcmp(version, VERSIONS[i]) == 0)
            return true;
    return false;
}

/* Bytes that are written one behind the other. `used` beyond `size`: they did not fit. */
struct output {
    char *bytes;
    size_t size;
    size_t used;
};

static void put(struct output *output, const char *bytes, size_t count)
{
    if (output->used <= output->size && count <= output->size - output->used) {
        memcpy(output->bytes + output->used, bytes, count);
        output->used += count;
    } else {
        output->used = output->size + 1;
    }
}

static void put_text(struct output *output, const char *text)
{
    put(output, text, strlen(text));
}

/* "name":"value", of printable ASCII. */
static void put_string(struct output *output, const char *name, const char *value)
{
    put_text(output, "\"");
    put_text(output, name);
    put_text(output, "\":\"");
    for (; *value != '\0'; value++) {
        if (*value == '"' || *value == '\\')
            put_text(output, "\\");
        put(output, value, 1);
    }
    put_text(output, "\",");
}

static void put_number(struct output *output, const char *name, long value)
{
    char text[32];
    snprintf(text, sizeof(text), "\"%s\":%ld", name, value);
    put_text(output, text);
}

static size_t written(const struct output *output)
{
    return output->used <= output->size ? output->used : 0;
}

size_t request_write(char *out, size_t size, const struct environment *environment, struct text configuration)
{
    struct output output = {out, size, 0};
    put_text(&output, "{");
    put_string(&output, "command", environment->command);
    put_string(&output, "container_id", environment->container_id);
    put_string(&output, "netns", environment->netns);
    put_string(&output, "ifname", environment->ifname);
    put_string(&output, "args", environment->args);
    put_text(&output, "\"config\":");
    put(&output, configuration.bytes, configuration.size);
    put_text(&output, "}");
    return written(&output);
}

size_t note_write(char *out, size_t size, const struct environment *environment, long now)
{
    struct output output = {out, size, 0};
    put_text(&output, "{");
    put_string(&output, "container_id", environment->container_id);
    put_string(&output, "netns", environment->netns);
    put_string(&output, "args", environment->args);
    put_number(&output, "time", now);
    put_text(&output, "}\n");
    return written(&output);
}
