/*
 * names.h: the three small texts that come from the network: SPIFFE ids, CONNECT authorities, and the
 * addresses in them. Sans-I/O; the input is hostile and need not be terminated.
 */
#ifndef NS_NAMES_H
#define NS_NAMES_H

#include "nodeseal_core.h"

/* True if text is spiffe://<trust domain>/ns/<namespace>/sa/<service account>, of allowed characters, and
 * shorter than NS_IDENTITY_MAX. Source: SPIFFE-ID.md sections 2.1 and 2.2 (lower-case trust domain; path
 * segments of letters, digits, dots, dashes and underscores, neither empty nor "." or ".."). */
int spiffe_id_valid(const char *text, size_t length);
/* True if the (valid) id belongs to the trust domain. */
int spiffe_id_in_domain(const char *id, const char *trust_domain);

/* Parses "10.0.0.1:80" or "[2001:db8::1]:80". 0, or -1 for anything else, port 0 included. */
int authority_parse(const char *text, size_t length, struct ns_address *out);
/* Longest text of authority_format, with its terminating zero. */
enum { AUTHORITY_MAX = 56 };
/* The reverse; v4-mapped addresses as dotted quads. Returns the length. */
size_t authority_format(const struct ns_address *address, char out[AUTHORITY_MAX]);

int address_is_v4(const struct ns_address *address);
/* Compares the address without the port. */
int address_same_ip(const struct ns_address *a, const struct ns_address *b);

#endif
