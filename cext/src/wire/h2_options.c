/* h2_options.c: see h2_options.h. */
#include "wire/h2_options.h"

/* In 1.52 it came with a security update of the distributions. */
void nghttp2_option_set_stream_reset_rate_limit(nghttp2_option *option, uint64_t burst, uint64_t rate)
    __attribute__((weak));

nghttp2_option *h2_options_new(int server)
{
    nghttp2_option *option;
    if (nghttp2_option_new(&option) != 0)
        return NULL;
    nghttp2_option_set_no_auto_window_update(option, 1);
    nghttp2_option_set_no_closed_streams(option, 1);
    nghttp2_option_set_no_http_messaging(option, !server); /* message.h */
    /* Its limit counts every reset, also of what ran well for an hour; that of frames.h does not. */
    if (nghttp2_option_set_stream_reset_rate_limit != NULL)
        nghttp2_option_set_stream_reset_rate_limit(option, UINT64_MAX, UINT64_MAX);
    return option;
}
