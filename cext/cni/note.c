#define _GNU_SOURCE
#include "note.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char FOLDER[] = "let-through";

/* The open folder of the notes, or -1. */
static int folder_open(const char *socket, bool make)
{
    char parent[PATH_MAX];
    const char *slash = strrchr(socket, '/');
    if (slash == NULL || slash == socket || (size_t)(slash - socket) >= sizeof(parent))
        return -1;
    memcpy(parent, socket, (size_t)(slash - socket));
    parent[slash - socket] = '\0';
    int directory = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return -1;
    if (make)
        mkdirat(directory, FOLDER, 0700);
    int folder = openat(directory, FOLDER, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    close(directory);
    return folder;
}

static bool has_room(int folder)
{
    int copy = dup(folder);
    DIR *entries = copy >= 0 ? fdopendir(copy) : NULL;
    if (entries == NULL) {
        if (copy >= 0)
            close(copy);
        return false;
    }
    int count = 0;
    while (count < NOTES_MAX + 2 && readdir(entries) != NULL)
        count++;
    closedir(entries);
    /* "." and "..", too */
    return count < NOTES_MAX + 2;
}

bool note_leave(const char *socket, const char *container_id, const char *bytes, size_t size)
{
    int folder = folder_open(socket, true);
    if (folder < 0)
        return false;
    bool left = false;
    int file = has_room(folder)
                   ? openat(folder, container_id, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600)
                   : -1;
    if (file >= 0) {
        left = write(file, bytes, size) == (ssize_t)size;
        close(file);
        if (!left)
            unlinkat(folder, container_id, 0);
    }
    close(folder);
    return left;
}

void note_remove(const char *socket, const char *container_id)
{
    int folder = folder_open(socket, false);
    if (folder < 0)
        return;
    unlinkat(folder, container_id, 0);
    close(folder);
}
