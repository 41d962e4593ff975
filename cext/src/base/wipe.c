/* wipe.c: see wipe.h. */
#include "base/wipe.h"

#include <openssl/crypto.h>
#include <stdint.h>

enum { STACK_WIPED = 16 << 10 }; /* deeper than OpenSSL goes with a private number */

#if defined(__x86_64__)
/* The upper half of the vector registers, by which glibc copies where the processor has them: compilers' own
 * means (zero_call_used_regs) leave them out. */
static __attribute__((noinline, target("avx512f"))) void wipe_upper_registers(void)
{
#define WIPE(number) "vpxorq %%zmm" #number ", %%zmm" #number ", %%zmm" #number "\n\t"
    __asm__ volatile(WIPE(16) WIPE(17) WIPE(18) WIPE(19) WIPE(20) WIPE(21) WIPE(22) WIPE(23) WIPE(24) WIPE(25)
                         WIPE(26) WIPE(27) WIPE(28) WIPE(29) WIPE(30) WIPE(31)::
                             : "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23",
                               "xmm24", "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");
#undef WIPE
}
#endif

__attribute__((noinline, zero_call_used_regs("all"))) void wipe_behind(void)
{
    uint8_t below[STACK_WIPED];
    OPENSSL_cleanse(below, sizeof(below));
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f"))
        wipe_upper_registers();
#endif
}
