/* h2_options.h: what nghttp2 leaves to us (h2.h, frames.h, message.h). */
#ifndef NS_H2_OPTIONS_H
#define NS_H2_OPTIONS_H

#include <nghttp2/nghttp2.h>

/* For a session of that role; NULL: no memory. The caller deletes them. */
nghttp2_option *h2_options_new(int server);

#endif
