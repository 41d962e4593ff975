/* mailbox.c: see mailbox.h. */
#include "loop/mailbox.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/link.h"

struct command *command_new(enum command_kind kind, uint64_t workload)
{
    struct command *command = ns_alloc(sizeof(*command));
    command->kind = kind;
    command->workload = workload;
    command->fd = -1;
    return command;
}

void command_free(struct command *command)
{
    if (command->fd >= 0)
        close(command->fd);
    tls_credentials_dispose(&command->credentials);
    bundles_release(command->bundles);
    decision_release(command->decision);
    concern_release(command->concern);
    quota_release(command->quota);
    free(command->syn);
    free(command);
}

void mailbox_init(struct mailbox *mailbox, int wake_fd)
{
    pthread_mutex_init(&mailbox->mutex, NULL);
    mailbox->head = NULL;
    mailbox->tail = &mailbox->head;
    mailbox->wake_fd = wake_fd;
}

void mailbox_dispose(struct mailbox *mailbox)
{
    struct command *command = mailbox->head;
    while (command != NULL) {
        struct command *next = command->next;
        command_free(command);
        command = next;
    }
    pthread_mutex_destroy(&mailbox->mutex);
}

void mailbox_post(struct mailbox *mailbox, struct command *command)
{
    command->next = NULL;
    pthread_mutex_lock(&mailbox->mutex);
    int first = mailbox->head == NULL;
    *mailbox->tail = command;
    mailbox->tail = &command->next;
    pthread_mutex_unlock(&mailbox->mutex);
    /* What lies beside others was announced with the first of them, and is taken with them. */
    uint64_t one = 1;
    if (first)
        (void)!write(mailbox->wake_fd, &one, sizeof(one)); /* fails only when raised to the brim already */
}

struct command *mailbox_take(struct mailbox *mailbox)
{
    uint64_t count;
    pthread_mutex_lock(&mailbox->mutex);
    struct command *first = mailbox->head;
    struct command **end = &first;
    for (int i = 0; i < TURN_COMMANDS && *end != NULL; i++)
        end = &(*end)->next;
    mailbox->head = *end;
    *end = NULL;
    if (mailbox->head == NULL) {
        mailbox->tail = &mailbox->head;
        (void)!read(mailbox->wake_fd, &count, sizeof(count));
    }
    pthread_mutex_unlock(&mailbox->mutex);
    return first;
}
