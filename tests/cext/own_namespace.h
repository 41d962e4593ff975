/*
 * own_namespace.h: a network namespace of the test's own, with lo alone and up, in which it is root: what
 * takes CAP_NET_ADMIN can be tested by anybody, and nobody else takes ports there.
 */
#ifndef NS_OWN_NAMESPACE_H
#define NS_OWN_NAMESPACE_H

/* For good, for the calling thread. */
void own_namespace(void);

#endif
