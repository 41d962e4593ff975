/* wipe.c: see wipe.h. */
#include "base/wipe.h"

#include <openssl/crypto.h>
#include <stdint.h>

enum { STACK_WIPED = 16 << 10 }; /* deeper than OpenSSL goes with a private number */

#if defined(__x86_64__)
/* Compilers' own means (zero_call_used_regs) wipe the 16 bytes of a vector register that every processor has,
 * and of the sixteen registers that AVX-512 adds, by which glibc copies, nothing. */
static void wipe_wide_registers(void)
{
    __asm__ volatile("vzeroall" ::
                         : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                           "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

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

/* A sanitizer would have the variable elsewhere. */
__attribute__((noinline, no_sanitize("address"), zero_call_used_regs("all"))) void wipe_behind(void)
{
    uint8_t below[STACK_WIPED];
    OPENSSL_cleanse(below, sizeof(below));
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx"))
        wipe_wide_registers();
    if (__builtin_cpu_supports("avx512f"))
        wipe_upper_registers();
    /* Were that call the last thing here, it would be a jump, and what the attribute adds be left out. */
    __asm__ volatile("");
#endif
}
