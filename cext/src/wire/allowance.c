/* allowance.c: see allowance.h. */
#include "wire/allowance.h"

enum { TELL_FROM = 4096 }; /* bytes given back while others are withheld */

void allowance_set(struct allowance *allowance, nghttp2_session *session, uint32_t window)
{
    uint32_t before = (uint32_t)nghttp2_session_get_effective_local_window_size(session);
    if (window < before)
        allowance->surplus += before - window;
    else
        allowance->surplus -= allowance->surplus < window - before ? allowance->surplus : window - before;
    nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0, (int32_t)window);
}

/* nghttp2 would give others back for them that are withheld. */
void allowance_took(struct allowance *allowance, nghttp2_session *session, size_t length)
{
    size_t swallowed = length < allowance->surplus ? length : allowance->surplus;
    allowance->surplus -= swallowed;
    nghttp2_session_consume_connection(session, length - swallowed);
}

/* nghttp2 tells the peer when half of the window can be given back, which may never come while others are
 * withheld. What it has not told yet is what was received and is not withheld. */
void allowance_give_back(struct allowance *allowance, nghttp2_session *session, size_t length,
                         size_t withheld)
{
    allowance_took(allowance, session, length);
    if (withheld == 0)
        return;
    int32_t untold = nghttp2_session_get_effective_recv_data_length(session) - (int32_t)withheld;
    if (untold >= TELL_FROM)
        nghttp2_submit_window_update(session, NGHTTP2_FLAG_NONE, 0, untold);
}
