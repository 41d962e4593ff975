/* packet_queue.c: messages as the kernel writes them, and others; tests/netns/test_parking_iptables.py has
 * the kernel's own. */
#define _GNU_SOURCE
#include "loop/packet_queue.h"

#include <arpa/inet.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_queue.h>
#include <linux/netlink.h>
#include <sys/socket.h>

#include "check.h"
#include "noise.h"

enum { QUEUE = 0x4e53, PACKET_TYPE = NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET };

struct message {
    size_t length;
    uint8_t bytes[1024];
};

static void message_begin(struct message *message, uint16_t type)
{
    const struct nlmsghdr head = {.nlmsg_type = type};
    const struct nfgenmsg about = {.nfgen_family = AF_INET, .res_id = htons(QUEUE)};
    memset(message, 0, sizeof(*message));
    memcpy(message->bytes, &head, sizeof(head));
    memcpy(message->bytes + sizeof(head), &about, sizeof(about));
    message->length = sizeof(head) + sizeof(about);
}

static void message_add(struct message *message, uint16_t type, const void *value, size_t size)
{
    const struct nlattr attribute = {.nla_type = type, .nla_len = (uint16_t)(sizeof(attribute) + size)};
    memcpy(message->bytes + message->length, &attribute, sizeof(attribute));
    memcpy(message->bytes + message->length + sizeof(attribute), value, size);
    message->length += NLA_ALIGN(sizeof(attribute) + size);
}

static void message_end(struct message *message)
{
    const uint32_t length = (uint32_t)message->length;
    memcpy(message->bytes, &length, sizeof(length));
}

static void message_add_id(struct message *message, uint32_t id)
{
    const struct nfqnl_msg_packet_hdr packet = {.packet_id = htonl(id)};
    message_add(message, NFQA_PACKET_HDR, &packet, sizeof(packet));
}

/* Of `size` bytes of a packet, with what the kernel puts before it. */
static void message_of(struct message *message, uint32_t id, size_t size)
{
    uint8_t packet[512];
    const uint32_t mark = htonl(NS_MARK_CAPTURED);
    memset(packet, 'p', sizeof(packet));
    message_begin(message, PACKET_TYPE);
    message_add_id(message, id);
    message_add(message, NFQA_MARK, &mark, sizeof(mark));
    message_add(message, NFQA_IFINDEX_INDEV, &mark, sizeof(mark));
    message_add(message, NFQA_PAYLOAD, packet, size);
    message_end(message);
}

/* In memory of exactly so many bytes, for AddressSanitizer. */
static int parse(const uint8_t *bytes, size_t length, struct packet_message *out)
{
    uint8_t *copy = malloc(length + (length == 0));
    memcpy(copy, bytes, length);
    int result = packet_message_parse(copy, length, out);
    if (result == 0 && out->length > 0) {
        CHECK(out->packet >= copy && out->packet + out->length <= copy + length);
        out->packet = bytes + (out->packet - copy);
    }
    free(copy);
    return result;
}

TEST(a_message_has_its_queue_its_id_and_its_packet)
{
    struct message message;
    struct packet_message found;
    for (size_t size = 1; size <= PARKED_PACKET_MAX; size++) {
        message_of(&message, 0x01020304, size);
        CHECK_EQUAL(parse(message.bytes, message.length, &found), 0);
        CHECK_EQUAL(found.queue, QUEUE);
        CHECK_EQUAL(found.id, 0x01020304);
        CHECK_EQUAL(found.length, size);
        CHECK(found.packet[0] == 'p' && found.packet[size - 1] == 'p');
    }
}

TEST(more_than_headers_is_left_out)
{
    struct message message;
    struct packet_message found;
    message_of(&message, 7, 400);
    CHECK_EQUAL(parse(message.bytes, message.length, &found), 0);
    CHECK_EQUAL(found.length, PARKED_PACKET_MAX);
}

TEST(one_that_was_cut_off_has_an_id_for_its_verdict)
{
    struct message message;
    struct packet_message found;
    message_of(&message, 7, 100);
    size_t with_id = sizeof(struct nlmsghdr) + sizeof(struct nfgenmsg) + sizeof(struct nlattr) +
                     sizeof(struct nfqnl_msg_packet_hdr);
    for (size_t length = 0; length < message.length; length++) {
        CHECK_EQUAL(parse(message.bytes, length, &found), length < with_id ? -1 : 0);
        if (length >= with_id) {
            CHECK_EQUAL(found.id, 7);
            CHECK_EQUAL(found.length, 0);
        }
    }
}

TEST(one_without_a_packet_has_none)
{
    struct message message;
    struct packet_message found;
    message_begin(&message, PACKET_TYPE);
    message_add_id(&message, 7);
    message_add(&message, NFQA_PAYLOAD, "", 0);
    message_end(&message);
    CHECK_EQUAL(parse(message.bytes, message.length, &found), 0);
    CHECK_EQUAL(found.length, 0);
}

TEST(what_is_about_no_packet_is_refused)
{
    const uint16_t types[] = {NLMSG_ERROR, NLMSG_DONE, NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG,
                              NFNL_SUBSYS_ULOG << 8 | NFQNL_MSG_PACKET};
    struct message message;
    struct packet_message found;
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
        message_begin(&message, types[i]);
        message_add_id(&message, 7);
        message_end(&message);
        CHECK_EQUAL(parse(message.bytes, message.length, &found), -1);
    }
    message_begin(&message, PACKET_TYPE);
    message_end(&message);
    CHECK_EQUAL(parse(message.bytes, message.length, &found), -1);
    /* Shorter than an id is. */
    message_add(&message, NFQA_PACKET_HDR, "\0\0\0", 4);
    message_end(&message);
    CHECK_EQUAL(parse(message.bytes, message.length, &found), -1);
}

TEST(an_attribute_of_no_length_ends_it)
{
    struct message message;
    struct packet_message found;
    message_begin(&message, PACKET_TYPE);
    message_add_id(&message, 7);
    message.length += sizeof(struct nlattr); /* all zero */
    message_add(&message, NFQA_PAYLOAD, "packet", 6);
    message_end(&message);
    CHECK_EQUAL(parse(message.bytes, message.length, &found), 0);
    CHECK_EQUAL(found.length, 0);
}

TEST(mutated_messages_are_read_within_their_bounds)
{
    struct noise noise = noise_new(20261130);
    struct message message;
    struct packet_message found;
    for (int i = 0; i < 200000; i++) {
        message_of(&message, (uint32_t)i, 1 + noise_below(&noise, 130));
        for (size_t changes = 1 + noise_below(&noise, 4); changes > 0; changes--)
            message.bytes[noise_below(&noise, message.length)] = (uint8_t)noise_next(&noise);
        if (parse(message.bytes, noise_below(&noise, message.length + 1), &found) == 0)
            CHECK(found.length <= PARKED_PACKET_MAX);
    }
}

TEST(what_is_no_socket_of_netlink_is_no_queue)
{
    int pipes[2], plain = socket(AF_INET, SOCK_STREAM, 0),
                  netlink = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER);
    CHECK_EQUAL(pipe(pipes), 0);
    CHECK_EQUAL(packet_queue_is(pipes[0]), 0);
    CHECK_EQUAL(packet_queue_is(plain), 0);
    CHECK_EQUAL(packet_queue_is(netlink), 1);
    struct packet_batch batch;
    CHECK_EQUAL(packet_queue_read(netlink, &batch), 0);
    CHECK_EQUAL(batch.count, 0);
    close(pipes[0]);
    close(pipes[1]);
    close(plain);
    close(netlink);
    CHECK_EQUAL(packet_queue_is(netlink), 0);
}

CHECK_MAIN
