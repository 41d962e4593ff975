/*
 * namespaces.h: the namespaces whose pods are to be enrolled, as the agent knew them last: a file beside its
 * socket, with one in each line.
 */
#ifndef NS_CNI_NAMESPACES_H
#define NS_CNI_NAMESPACES_H

#include <stdbool.h>

/* True if the file says that this one is none of them. False if it is, and if nothing can be known: there is
 * no such file, or it cannot be read. `socket`: the path of the agent's. */
bool namespaces_lack(const char *socket, const char *name);

#endif
