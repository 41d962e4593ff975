/*
 * names.h: the three small texts that come from the network: SPIFFE ids, CONNECT authorities, and the
 * addresses in them. Sans-I/O; the input is hostile and need not be terminated.
 */
#ifndef NS_NAMES_H
#define NS_NAMES_H

#include "nodeseal_core.h"

/* Longest id of any trust domain. Source: SPIFFE-ID.md section 2.3. */
enum { SPIFFE_ID_MAX = 2048 };
/* True if text is the id of a workload of whatever trust domain: spiffe://<trust domain>/<path>. Source:
 * SPIFFE-ID.md sections 2.1 and 2.2 (lower-case trust domain of at most 255 bytes; path segments of letters,
 * digits, dots, dashes and underscores, neither empty nor "." or ".."). */
int spiffe_id_valid(const char *text, size_t length);
/* True if text is spiffe://<trust domain>, the id of a signing certificate. */
int spiffe_domain_id_valid(const char *text, size_t length);
/* True if the id, valid in either way, belongs to the trust domain. */
int spiffe_id_in_domain(const char *text, size_t length, const char *trust_domain);
/* True if the (valid) id has the form of this mesh's own workloads, <trust
 * domain>/ns/<namespace>/sa/<account>.
 */
int spiffe_id_names_workload(const char *text, size_t length);

/* Parses "10.0.0.1:80" or "[2001:db8::1]:80". 0, or -1 for anything else: port 0, and any other spelling than
 * that of authority_format, so that one address has one name in policies and logs. */
int authority_parse(const char *text, size_t length, struct ns_address *out);
/* Longest text of authority_format, with its terminating zero. */
enum { AUTHORITY_MAX = 56 };
/* The reverse; v4-mapped addresses as dotted quads. Returns the length. */
size_t authority_format(const struct ns_address *address, char out[AUTHORITY_MAX]);

int address_is_v4(const struct ns_address *address);
/* Compares the address without the port. */
int address_same_ip(const struct ns_address *a, const struct ns_address *b);

#endif
