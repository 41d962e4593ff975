#define _GNU_SOURCE
#include "namespaces.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "call.h"

static const char NAME[] = "enrolled-namespaces";

bool namespaces_lack(const char *socket, const char *name)
{
    char path[PATH_MAX], line[NAMESPACE_MAX + 1];
    const char *slash = strrchr(socket, '/');
    if (slash == NULL)
        return false;
    int size = snprintf(path, sizeof(path), "%.*s/%s", (int)(slash - socket), socket, NAME);
    if (size < 0 || (size_t)size >= sizeof(path))
        return false;
    int file = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    FILE *lines = file >= 0 ? fdopen(file, "r") : NULL;
    if (lines == NULL) {
        if (file >= 0)
            close(file);
        return false;
    }
    bool found = false;
    while (!found && fgets(line, sizeof(line), lines) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        found = strcmp(line, name) == 0;
    }
    bool known = !ferror(lines);
    fclose(lines);
    return known && !found;
}
