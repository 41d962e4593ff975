/* The whole core: what changes while connections run, and all of it at once. */
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/socket.h>

#include <sys/mman.h>
