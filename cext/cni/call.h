/*
 * call.h: what the container runtime asks of the plugin: its environment, and the network configuration on
 * standard input. Sans-I/O. Source: https://www.cni.dev/docs/spec/ version 1.1.0, sections 2 and 3.
 */
#ifndef NS_CNI_CALL_H
#define NS_CNI_CALL_H

#include "json.h"

/* Longest variable of the environment, longest path of the agent's socket (sun_path, unix(7)), longest name
 * of a Kubernetes namespace (RFC 1123). Each with its terminating zero. */
enum { VARIABLE_MAX = 4096, SOCKET_MAX = 108, NAMESPACE_MAX = 64 };
/* Largest configuration and largest answer. A network's result has some hundred bytes for each of its
 * addresses. */
enum { CONFIGURATION_MAX = 1024 * 1024, ANSWER_MAX = 64 * 1024 };

/* Error codes of the specification. */
enum error_code {
    ERROR_VERSION = 1,
    ERROR_ENVIRONMENT = 4,
    ERROR_IO = 5,
    ERROR_DECODE = 6,
    ERROR_CONFIGURATION = 7,
    ERROR_TRY_AGAIN = 11,
};

/* CNI_*: "" of what is not set. They point into the environment. */
struct environment {
    const char *command;
    const char *container_id;
    const char *netns;
    const char *ifname;
    const char *args;
};

/* What the plugin's entry in the list of networks says. */
struct options {
    char socket[SOCKET_MAX];
    /* A pod that nobody enrols in time may start all the same. */
    bool open;
    /* One of a namespace that is not enrolled may (namespaces.h). */
    bool by_namespace;
    /* How long a pod waits for the agent; 0: as long as options_patience says. */
    long timeout_seconds;
    /* Array of namespaces whose pods are treated as if open was true; {NULL, 0}: none. Within the
     * configuration. */
    struct text open_namespaces;
};

/* Reads CNI_*. False if one of them has something else than printable ASCII in it, or is too long. */
bool environment_read(struct environment *environment);
/* True if it is a container id of the specification that can be the name of a file. */
bool container_id_check(const char *text);
/* Writes the value of a key of CNI_ARGS ("K8S_POD_NAME") into out. False if it has none, or it does not fit.
 */
bool argument_find(const char *args, const char *key, char *out, size_t size);

/* Reads the entry's own options from the configuration. NULL, or what is wrong. */
const char *options_read(struct text configuration, struct options *options);
/* True if a pod of this namespace may start although nobody has enrolled it, whatever the agent knows. */
bool options_open(const struct options *options, const char *pod_namespace);
/* How long a pod waits for the agent, in seconds; `open`: what options_open has said of it. */
long options_patience(const struct options *options, bool open);
/* True if the configuration is of a version of the specification that the plugin knows. */
bool version_known(struct text configuration);

/* Writes the question to the agent, as nodeseal.contracts.pod_start has it. The length, or 0 if it does not
 * fit. */
size_t request_write(char *out, size_t size, const struct environment *environment,
                     struct text configuration);
/* What is written of a pod that was let through. The length, or 0 if it does not fit. */
size_t note_write(char *out, size_t size, const struct environment *environment, long now);

#endif
