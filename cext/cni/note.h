/*
 * note.h: notes of pods that were let through with no agent to enrol them, for the agent that comes: files in
 * the folder let-through beside its socket, each named for the pod's container id.
 */
#ifndef NS_CNI_NOTE_H
#define NS_CNI_NOTE_H

#include <stdbool.h>
#include <stddef.h>

/* Most notes that are left. */
enum { NOTES_MAX = 1000 };

/* False if there is no room, or no way to write it. `socket`: the path of the agent's. */
bool note_leave(const char *socket, const char *container_id, const char *bytes, size_t size);
/* One that is not there is passed over. */
void note_remove(const char *socket, const char *container_id);

#endif
