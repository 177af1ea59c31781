/* y = x W^T + b in bf16 for few rows of x: every weight is read once, where it is, and multiplied with all of them.

   Both x and W have the inputs of a sum side by side, which is what the processor's bf16 instruction takes, two inputs
   in each of 16 lanes: neither has to be turned round first. A sum is made in the same order whatever rows are beside
   it, so that its bits do not depend on the batch.

   Knows nothing of tensors: pointers and sizes are the caller's (native.py). */

#include <stdint.h>

#if defined(__x86_64__) && defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 14)
#include <immintrin.h>

#define BF16 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define ALWAYS static inline __attribute__((always_inline)) BF16
/* Sums that are made at once: as many as there are registers for, beside their factors. */
enum { ROWS = 6, NEURONS = 4, LANES = 32 };

int patchbay_has_bf16(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

/* The sums of the lanes of four registers. */
ALWAYS __m128 sums(const __m512 s[NEURONS]) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(s[0], s[1]), _mm512_unpackhi_ps(s[0], s[1]));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(s[2], s[3]), _mm512_unpackhi_ps(s[2], s[3]));
  const __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
  const __m512 four = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
  const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(four), _mm512_extractf32x8_ps(four, 1));
  return _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
}

/* `s` += LANES inputs, or the first of them, of each row and each neuron. `ahead`: fetches the neurons behind these. */
ALWAYS void step(__m512 s[ROWS][NEURONS], const int rows, const int neurons, const int ahead, const uint16_t *x,
                 const uint16_t *w, int64_t in, __mmask32 some) {
  __m512bh weights[NEURONS];
#pragma GCC unroll 4
  for (int n = 0; n < neurons; n++) {
    weights[n] = (__m512bh)_mm512_maskz_loadu_epi16(some, w + n * in);
    if (ahead) _mm_prefetch((const char *)(w + (NEURONS + n) * in), _MM_HINT_T0);
  }
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++) {
    const __m512bh inputs = (__m512bh)_mm512_maskz_loadu_epi16(some, x + r * in);
#pragma GCC unroll 4
    for (int n = 0; n < neurons; n++) s[r][n] = _mm512_dpbf16_ps(s[r][n], inputs, weights[n]);
  }
}

/* y[rows][neurons] of [.][out] */
ALWAYS void tile(const int rows, const int neurons, const int ahead, const uint16_t *x, const uint16_t *w,
                 const uint16_t *bias, uint16_t *y, int64_t in, int64_t out) {
  __m512 s[ROWS][NEURONS];
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int n = 0; n < NEURONS; n++) s[r][n] = _mm512_setzero_ps();
  int64_t i = 0;
  for (; i + LANES <= in; i += LANES) step(s, rows, neurons, ahead, x + i, w + i, in, ~(__mmask32)0);
  if (i < in) step(s, rows, neurons, 0, x + i, w + i, in, ((__mmask32)1 << (in - i)) - 1);
  const __mmask8 there = (__mmask8)((1 << neurons) - 1);
  __m128 b = _mm_setzero_ps();
  if (bias) b = _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_maskz_loadu_epi16(there, bias)), 16));
#pragma GCC unroll 6
  for (int r = 0; r < rows; r++)
    _mm_mask_storeu_epi16(y + r * out, there, (__m128i)_mm_cvtneps_pbh(_mm_add_ps(sums(s[r]), b)));
}

ALWAYS void block(const int ahead, const int neurons, int64_t rows, const uint16_t *x, const uint16_t *w,
                  const uint16_t *bias, uint16_t *y, int64_t in, int64_t out) {
  switch (rows) {
    case 6: tile(6, neurons, ahead, x, w, bias, y, in, out); break;
    case 5: tile(5, neurons, ahead, x, w, bias, y, in, out); break;
    case 4: tile(4, neurons, ahead, x, w, bias, y, in, out); break;
    case 3: tile(3, neurons, ahead, x, w, bias, y, in, out); break;
    case 2: tile(2, neurons, ahead, x, w, bias, y, in, out); break;
    case 1: tile(1, neurons, ahead, x, w, bias, y, in, out); break;
  }
}

/* All rows, ROWS at a time. Only the first of them wait for memory. */
ALWAYS void column(const int neurons, int64_t rows, const uint16_t *x, const uint16_t *w, const uint16_t *bias,
                   uint16_t *y, int64_t in, int64_t out) {
  int64_t now = rows < ROWS ? rows : ROWS;
  block(1, neurons, now, x, w, bias, y, in, out);
  for (int64_t done = now; done < rows; done += now) {
    now = rows - done < ROWS ? rows - done : ROWS;
    block(0, neurons, now, x + done * in, w, bias, y + done * out, in, out);
  }
}

/* All bf16, without gaps: x [rows][in], w [out][in], bias [out] or NULL, y [rows][out]. */
BF16 void patchbay_linear(const uint16_t *x, const uint16_t *w, const uint16_t *bias, uint16_t *y, int64_t rows,
                          int64_t in, int64_t out, int threads) {
  const int64_t whole = out / NEURONS * NEURONS;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) if (threads > 1)
#endif
  for (int64_t n = 0; n < whole; n += NEURONS)
    column(NEURONS, rows, x, w + n * in, bias ? bias + n : 0, y + n, in, out);
  for (int64_t n = whole; n < out; n++) column(1, rows, x, w + n * in, bias ? bias + n : 0, y + n, in, out);
}

#else

int patchbay_has_bf16(void) { return 0; }

void patchbay_linear(const uint16_t *x, const uint16_t *w, const uint16_t *bias, uint16_t *y, int64_t rows, int64_t in,
                     int64_t out, int threads) {
  (void)x, (void)w, (void)bias, (void)y, (void)rows, (void)in, (void)out, (void)threads;
}

#endif
