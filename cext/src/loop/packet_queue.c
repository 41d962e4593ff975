/* packet_queue.c: see packet_queue.h. The messages are the kernel's: net/netfilter/nfnetlink_queue.c. */
#define _GNU_SOURCE
#include "loop/packet_queue.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <string.h>
#include <sys/socket.h>

enum {
    ATTRIBUTE_HEAD = sizeof(struct nlattr),
    MESSAGE_HEAD = sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg),
};

/* What has all packets up to an id dropped. */
struct verdict {
    struct nlmsghdr head;
    struct nfgenmsg about;
    struct nlattr attribute;
    struct nfqnl_msg_verdict_hdr verdict;
};

_Static_assert(sizeof(struct verdict) == MESSAGE_HEAD + ATTRIBUTE_HEAD + 8, "without padding");

int packet_queue_is(int fd)
{
    int domain = 0;
    socklen_t length = sizeof(domain);
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_NETLINK;
}

int packet_message_parse(const uint8_t *bytes, size_t length, struct packet_message *out)
{
    struct nlmsghdr head;
    struct nfgenmsg about;
    if (length < MESSAGE_HEAD)
        return -1;
    memcpy(&head, bytes, sizeof(head));
    memcpy(&about, bytes + sizeof(head), sizeof(about));
    if (head.nlmsg_type != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET) || head.nlmsg_len < MESSAGE_HEAD)
        return -1;
    /* Of one that was cut off, what is there: its packet wants a verdict all the same. */
    size_t end = head.nlmsg_len < length ? head.nlmsg_len : length;
    int has_id = 0;
    memset(out, 0, sizeof(*out));
    out->queue = ntohs(about.res_id);
    for (size_t at = MESSAGE_HEAD; at + ATTRIBUTE_HEAD <= end;) {
        struct nlattr attribute;
        memcpy(&attribute, bytes + at, sizeof(attribute));
        if (attribute.nla_len < ATTRIBUTE_HEAD || attribute.nla_len > end - at)
            break;
        const uint8_t *value = bytes + at + ATTRIBUTE_HEAD;
        size_t size = attribute.nla_len - (size_t)ATTRIBUTE_HEAD;
        int kind = attribute.nla_type & NLA_TYPE_MASK;
        if (kind == NFQA_PACKET_HDR && size >= sizeof(struct nfqnl_msg_packet_hdr)) {
            struct nfqnl_msg_packet_hdr packet;
            memcpy(&packet, value, sizeof(packet));
            out->id = ntohl(packet.packet_id);
            has_id = 1;
        } else if (kind == NFQA_PAYLOAD && size > 0) {
            out->packet = value;
            out->length = size < PARKED_PACKET_MAX ? (uint32_t)size : PARKED_PACKET_MAX;
        }
        at += (size_t)NLA_ALIGN(attribute.nla_len);
    }
    return has_id ? 0 : -1;
}

/* If it fails, the kernel keeps them until the queue ends, or the next verdict: harmless but for their room.
 */
static void drop_up_to(int fd, uint16_t queue, uint32_t id)
{
    const struct verdict verdict = {
        .head = {.nlmsg_len = sizeof(verdict),
                 .nlmsg_type = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_VERDICT_BATCH,
                 .nlmsg_flags = NLM_F_REQUEST},
        .about = {.nfgen_family = AF_UNSPEC, .version = NFNETLINK_V0, .res_id = htons(queue)},
        .attribute = {.nla_len = ATTRIBUTE_HEAD + sizeof(verdict.verdict), .nla_type = NFQA_VERDICT_HDR},
        .verdict = {.verdict = htonl(NF_DROP), .id = htonl(id)},
    };
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    (void)sendto(fd, &verdict, sizeof(verdict), MSG_DONTWAIT, (const struct sockaddr *)&kernel,
                 sizeof(kernel));
}

int packet_queue_read(int fd, struct packet_batch *batch)
{
    uint8_t bytes[QUEUE_PACKETS][QUEUE_MESSAGE_MAX];
    struct sockaddr_nl from[QUEUE_PACKETS];
    struct iovec parts[QUEUE_PACKETS];
    struct mmsghdr messages[QUEUE_PACKETS];
    memset(messages, 0, sizeof(messages));
    for (int i = 0; i < QUEUE_PACKETS; i++) {
        parts[i] = (struct iovec){bytes[i], sizeof(bytes[i])};
        messages[i].msg_hdr.msg_iov = &parts[i];
        messages[i].msg_hdr.msg_iovlen = 1;
        messages[i].msg_hdr.msg_name = &from[i];
        messages[i].msg_hdr.msg_namelen = sizeof(from[i]);
    }
    batch->count = 0;
    int count = recvmmsg(fd, messages, QUEUE_PACKETS, MSG_DONTWAIT, NULL);
    if (count < 0) /* an overrun was announced: what is there may be read now */
        return errno == ENOBUFS || errno == EINTR ? QUEUE_PACKETS : 0;
    struct packet_message last = {0}, message;
    int any = 0;
    for (int i = 0; i < count; i++) {
        /* Others than the kernel may write to its port, with CAP_NET_ADMIN. */
        if (messages[i].msg_hdr.msg_namelen != sizeof(from[i]) || from[i].nl_pid != 0 ||
            packet_message_parse(bytes[i], messages[i].msg_len, &message) != 0)
            continue;
        last = message;
        any = 1;
        if (message.length == 0)
            continue;
        struct parked_record *record = &batch->records[batch->count++];
        record->kind = PARKED_SYN;
        record->length = message.length;
        record->value = 0;
        record->mark = NS_MARK_RELEASED;
        memcpy(record->packet, message.packet, message.length);
    }
    if (any)
        drop_up_to(fd, last.queue, last.id);
    return count;
}
