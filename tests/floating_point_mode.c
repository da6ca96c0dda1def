/* Sets how the calling thread rounds and treats subnormal numbers. */
#include <fenv.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

/* Makes subnormal results and operands 0, or no longer. Returns 0 on processors for which it is not implemented. */
int flush_subnormals(int on) {
#if defined(__SSE__)
    _mm_setcsr(on ? _mm_getcsr() | 0x8040 : _mm_getcsr() & ~0x8040u);
    return 1;
#elif defined(__aarch64__)
    unsigned long control;
    __asm__ volatile("mrs %0, fpcr" : "=r"(control));
    control = on ? control | 1ul << 24 : control & ~(1ul << 24);
    __asm__ volatile("msr fpcr, %0" : : "r"(control));
    return 1;
#else
    return on ? 0 : 1;
#endif
}

void round_upward(int on) { fesetround(on ? FE_UPWARD : FE_TONEAREST); }
