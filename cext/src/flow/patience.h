/*
 * patience.h: for how long the peer of a tunnel may be silent.
 *
 * An application tells its TCP: by SO_KEEPALIVE and its times, and by TCP_USER_TIMEOUT. That TCP ends at this
 * core, which answers it whatever has become of the peer. So the core bears for each stream what its
 * application bears (stream_bear), and PATIENCE_MS for those that have not said.
 *
 * A peer that was silent for a third of what the least patient stream bears is asked (PING). If then nothing
 * comes for the other two thirds, that stream ends. What counts as nothing: of streams whose applications
 * have said, what does for TCP, so that an acknowledgement of the peer's kernel is enough, up to PATIENCE_MS;
 * of others the peer itself. So a core that hangs is noticed. The answer to the PING may take longer over a
 * way that loses much: in the peer's socket it stands behind megabytes of bulk, all of which counts.
 *
 * Only the stream ends, not those that bear more. When the peer was silent for PATIENCE_MS, the tunnel takes
 * no new streams any more, and goes with its last one. TCP itself gives it up after a quarter of an hour or
 * so. The option unacknowledged_ms ends what has not said earlier, if what was sent is not acknowledged.
 *
 * Ticks are a second apart. Tunnels with streams that bear less than PATIENCE_MS are hasty: they are looked
 * at up to eight times in a second.
 */
#ifndef NS_PATIENCE_H
#define NS_PATIENCE_H

#include "flow/stream.h"

/* OPEN: asks the peer, and ends streams. 1: nobody waits for the peer any more, and the tunnel is to end. */
int patience_look(struct tunnel *tunnel);
/* The same of the worker's hasty tunnels, when it is due. */
void patience_look_at_hasty(struct worker *worker);

#endif
