/* windows.c: how wide a window should be. What windows bound is tested in test_core_memory.c. */
#include "windows.h"

#include "check.h"
#include "h2.h"

enum { MB = 1000000, MS = 1000 };

TEST(a_near_peer_keeps_its_window_however_fast_it_is)
{
    /* 1 GB/s over a veth: what limits is the CPU. */
    CHECK_EQUAL(window_wanted(H2_STREAM_WINDOW, H2_STREAM_WINDOW_MAX, 4 * MB, 4 * MS, 60), H2_STREAM_WINDOW);
}

TEST(a_far_peer_gets_twice_the_window_until_it_is_enough)
{
    uint32_t window = H2_STREAM_WINDOW;
    /* Each round trip of 50 ms carries one window: the window is the limit. */
    for (int i = 0; i < 10; i++)
        window = window_wanted(window, H2_STREAM_WINDOW_MAX, window, 50 * MS, 50 * MS);
    CHECK_EQUAL(window, H2_STREAM_WINDOW_MAX);
    /* 20 MB/s over 50 ms are 1 MB on the way: 2 are enough, and 4 are not asked for. */
    CHECK_EQUAL(window_wanted(2 << 20, H2_STREAM_WINDOW_MAX, 20 * MB, 1000 * MS, 50 * MS), 2 << 20);
}

TEST(a_slow_stream_keeps_its_window_over_any_distance)
{
    CHECK_EQUAL(window_wanted(H2_STREAM_WINDOW, H2_STREAM_WINDOW_MAX, MB, 1000 * MS, 200 * MS),
                H2_STREAM_WINDOW);
}

TEST(a_window_is_never_larger_than_the_largest)
{
    CHECK_EQUAL(window_wanted(H2_STREAM_WINDOW_MAX, H2_STREAM_WINDOW_MAX, 1000 * MB, 1, 1000 * MS),
                H2_STREAM_WINDOW_MAX);
    CHECK_EQUAL(window_wanted(H2_STREAM_WINDOW, H2_STREAM_WINDOW_MAX, MB, 0, 0), 2 * H2_STREAM_WINDOW);
}

CHECK_MAIN
