/*
 * nodeseal-cni: a chained network plugin (CNI 0.3.1 to 1.1.0) that has a pod start once it is enrolled.
 *
 * It stands last in the list of plugins. When the others have made a pod's network and nothing of the pod
 * runs yet, the runtime calls it (ADD). It asks the agent over its Unix socket and waits; then it prints the
 * result of the plugins before it, byte for byte, and the pod starts. While no agent answers, it waits for
 * one: an agent that is being upgraded is back in seconds, and a refusal would cost the pod a new sandbox, 14
 * seconds later. What becomes of a pod that waited in vain, `on_failure` of its configuration says: it may
 * not start (closed), or it starts as it is, and a note is left for the agent (open); or its namespace says
 * which of the two (by-namespace).
 *
 * What goes must go: DEL and GC never fail, whatever they are given. STATUS is always well: the
 * specification's code 50 would make the whole node NotReady, its pods that are none of ours included.
 *
 * Linked statically: it runs on the node, which has nothing of ours installed. One call is one process, so
 * memory is static, and descriptors of the whole process end with it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "call.h"
#include "namespaces.h"
#include "note.h"

/* How long the runtime has to give the configuration, how long a pod that goes waits for the agent, how long
 * a check. */
enum { INPUT_MS = 10000, DEPARTURE_MS = 5000, CHECK_MS = 10000 };

static char configuration_bytes[CONFIGURATION_MAX + 1];
static char question[CONFIGURATION_MAX + 5 * 2 * VARIABLE_MAX + 512];
static char answer[ANSWER_MAX];

static void print_all(const char *bytes, size_t size)
{
    while (size > 0) {
        ssize_t written = write(STDOUT_FILENO, bytes, size);
        if (written < 0 && errno != EINTR)
            _exit(1);
        if (written > 0) {
            bytes += written;
            size -= (size_t)written;
        }
    }
}

/* Prints an error of the specification (section 5), of texts without quotes. The exit status. */
static int fail(struct text configuration, enum error_code code, const char *what, const char *details)
{
    char version[16], text[1024];
    if (!json_string(json_member(configuration, "cniVersion"), version, sizeof(version)) ||
        strspn(version, "0123456789.") != strlen(version))
        memcpy(version, "1.1.0", 6);
    int size =
        snprintf(text, sizeof(text),
                 "{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":\"nodeseal-cni: %s\",\"details\":\"%s\"}\n",
                 version, (int)code, what, details);
    if (size > 0 && (size_t)size < sizeof(text))
        print_all(text, (size_t)size);
    return 1;
}

/* The network's configuration. False if it does not come, or is too large. */
static bool configuration_read(struct text *configuration)
{
    long long deadline = clock_ms() + INPUT_MS;
    size_t used = 0;
    for (;;) {
        struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
        long long left = deadline - clock_ms();
        if (left <= 0 || (poll(&input, 1, (int)left) < 0 && errno != EINTR))
            return false;
        if (input.revents == 0)
            continue;
        ssize_t count = read(STDIN_FILENO, configuration_bytes + used, sizeof(configuration_bytes) - used);
        if (count < 0 && errno != EINTR && errno != EAGAIN)
            return false;
        if (count == 0)
            break;
        if (count > 0)
            used += (size_t)count;
        if (used > CONFIGURATION_MAX)
            return false;
    }
    *configuration = (struct text){configuration_bytes, used};
    return true;
}

/* Whether the agent's answer is that all is well; otherwise it is printed, an error of the specification. */
static bool answer_take(size_t size)
{
    struct text object = {answer, size};
    long code;
    if (json_integer(json_member(object, "code"), 0, 0, &code))
        return true;
    print_all(answer, size);
    return false;
}

/* A pod for which nobody answers. */
static int let_through(const struct environment *environment, const struct options *options,
                       struct text result)
{
    char note[3 * 2 * VARIABLE_MAX + 256];
    size_t size = note_write(note, sizeof(note), environment, (long)time(NULL));
    if (size == 0 || !note_leave(options->socket, environment->container_id, note, size))
        fprintf(stderr, "nodeseal-cni: no note could be left of a pod that starts without being enrolled\n");
    print_all(result.bytes, result.size);
    return 0;
}

static int add(const struct environment *environment, struct text configuration)
{
    struct options options;
    char pod[VARIABLE_MAX], pod_namespace[NAMESPACE_MAX];
    struct text result = json_member(configuration, "prevResult");
    if (result.bytes == NULL || result.bytes[0] != '{')
        return fail(configuration, ERROR_CONFIGURATION, "there is no prevResult",
                    "it has to stand behind the plugin that makes the network, in a list of plugins");
    const char *wrong = options_read(configuration, &options);
    if (wrong != NULL)
        return fail(configuration, ERROR_CONFIGURATION, wrong, "nodeseal agent writes this entry");
    if (!container_id_check(environment->container_id) || environment->netns[0] == '\0')
        return fail(configuration, ERROR_ENVIRONMENT, "CNI_CONTAINERID or CNI_NETNS is not as it should be",
                    "");
    if (!argument_find(environment->args, "K8S_POD_NAME", pod, sizeof(pod)) || pod[0] == '\0' ||
        !argument_find(environment->args, "K8S_POD_NAMESPACE", pod_namespace, sizeof(pod_namespace))) {
        /* No pod: a container that somebody else has started. */
        print_all(result.bytes, result.size);
        return 0;
    }
    bool open = options_open(&options, pod_namespace) ||
                (options.by_namespace && namespaces_lack(options.socket, pod_namespace));
    long long patience_ms = (long long)options_patience(&options, open) * 1000;
    size_t asked = request_write(question, sizeof(question), environment, configuration);
    if (asked == 0)
        return fail(configuration, ERROR_IO, "the request does not fit", "");
    const char *why = "";
    size_t size = agent_ask(options.socket, question, asked, clock_ms() + patience_ms, false, answer,
                            sizeof(answer), &why);
    if (size > 0 && !json_object_check((struct text){answer, size})) {
        why = "its answer is no JSON";
        size = 0;
    }
    if (size == 0 && open)
        return let_through(environment, &options, result);
    if (size == 0)
        return fail(configuration, ERROR_TRY_AGAIN,
                    "the nodeseal agent of this node did not enrol the pod in time", why);
    if (!answer_take(size))
        return 1;
    print_all(result.bytes, result.size);
    return 0;
}

/* Tells the agent of something that nobody waits for: it may not be there. */
static size_t tell(const struct environment *environment, const struct options *options,
                   struct text configuration, long long patience_ms)
{
    const char *why;
    size_t asked = request_write(question, sizeof(question), environment, configuration);
    if (asked == 0)
        return 0;
    size_t size = agent_ask(options->socket, question, asked, clock_ms() + patience_ms, true, answer,
                            sizeof(answer), &why);
    return size > 0 && json_object_check((struct text){answer, size}) ? size : 0;
}

static int check(const struct environment *environment, struct text configuration)
{
    struct options options;
    /* No agent is no fault: what is captured goes on without one. */
    if (options_read(configuration, &options) != NULL)
        return 0;
    size_t size = tell(environment, &options, configuration, CHECK_MS);
    return size == 0 || answer_take(size) ? 0 : 1;
}

static int end(const struct environment *environment, struct text configuration)
{
    struct options options;
    if (options_read(configuration, &options) != NULL)
        return 0;
    tell(environment, &options, configuration, DEPARTURE_MS);
    if (container_id_check(environment->container_id))
        note_remove(options.socket, environment->container_id);
    return 0;
}

static int tell_versions(struct text configuration)
{
    static const char versions[] = "\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n";
    char version[16];
    if (!json_string(json_member(configuration, "cniVersion"), version, sizeof(version)) ||
        strspn(version, "0123456789.") != strlen(version))
        memcpy(version, "1.1.0", 6);
    print_all("{\"cniVersion\":\"", 15);
    print_all(version, strlen(version));
    print_all("\",", 2);
    print_all(versions, sizeof(versions) - 1);
    return 0;
}

int main(void)
{
    struct environment environment;
    struct text configuration = {NULL, 0};
    signal(SIGPIPE, SIG_IGN);
    bool good = environment_read(&environment);
    bool ends = strcmp(environment.command, "DEL") == 0 || strcmp(environment.command, "GC") == 0;
    bool read = configuration_read(&configuration);
    if (!read || !json_object_check(configuration))
        configuration = (struct text){NULL, 0};
    if (ends)
        return good && configuration.bytes != NULL ? end(&environment, configuration) : 0;
    if (strcmp(environment.command, "VERSION") == 0)
        return tell_versions(configuration);
    if (!good)
        return fail(configuration, ERROR_ENVIRONMENT,
                    "a variable CNI_* has more than printable ASCII, or is too long", "");
    if (!read)
        return fail(configuration, ERROR_IO, "the configuration did not come, or is larger than 1 MiB", "");
    if (configuration.bytes == NULL)
        return fail(configuration, ERROR_DECODE, "the configuration is no JSON object", "");
    if (!version_known(configuration))
        return fail(configuration, ERROR_VERSION, "cniVersion is none of 0.3.1, 0.4.0, 1.0.0, 1.1.0", "");
    if (strcmp(environment.command, "STATUS") == 0)
        return 0;
    if (strcmp(environment.command, "ADD") == 0)
        return add(&environment, configuration);
    if (strcmp(environment.command, "CHECK") == 0)
        return check(&environment, configuration);
    return fail(configuration, ERROR_ENVIRONMENT,
                "CNI_COMMAND is none of ADD, DEL, CHECK, GC, STATUS, VERSION", "");
}
