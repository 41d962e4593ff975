/* tunnel.c: when a peer counts as gone. What needs sockets is in test_core_*.c. */
#include "flow/tunnel.h"

#include "check.h"

TEST(peer_that_was_not_asked_is_not_gone)
{
    struct tunnel tunnel = {.heard_ms = 1000};
    CHECK(!tunnel_peer_is_gone(&tunnel, 1000000));
}

TEST(peer_that_has_said_nothing_since_it_was_asked_is_gone)
{
    struct tunnel tunnel = {.heard_ms = 1000, .ping_ms = 11000};
    CHECK(!tunnel_peer_is_gone(&tunnel, 31000));
    CHECK(tunnel_peer_is_gone(&tunnel, 31001));
}

TEST(peer_that_was_just_asked_may_answer)
{
    struct tunnel tunnel = {.heard_ms = 1000, .ping_ms = 100000};
    CHECK(!tunnel_peer_is_gone(&tunnel, 120000));
    CHECK(tunnel_peer_is_gone(&tunnel, 120001));
}

TEST(peer_that_says_something_else_is_not_gone)
{
    struct tunnel tunnel = {.heard_ms = 30000, .ping_ms = 11000};
    CHECK(!tunnel_peer_is_gone(&tunnel, 60000));
    CHECK(tunnel_peer_is_gone(&tunnel, 60001));
}

CHECK_MAIN
