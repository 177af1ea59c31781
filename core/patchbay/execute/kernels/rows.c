/* y += c (x D^T) for matrices of few entries, several at once; and W += c D. The layout of D is that of
   patchbay/delta/packed.py.

   A window is 256 neurons; a slice is 16 of them with about as many entries each, a step one entry of each of the 16.
   What an entry adds is looked up in a table made of one input, or of 16 inputs side by side. One entry of two bytes
   is read for all of them, which is what the speed comes from: deltas are read from memory, the inputs are not.

   Knows nothing of tensors: pointers, sizes and strides are the caller's (native.py). */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 16, WINDOW = 256, SLICES = WINDOW / LANES };

/* Sixteen inputs cost about as much as three, one after the other. */
enum { FEW = 3 };

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EACH_PROCESSOR
#endif

/* Compilers make loads through an index into gathers, which are several times slower than single loads here. */
#if defined(__GNUC__) && !defined(__clang__)
#define SINGLE_LOADS __attribute__((optimize("no-tree-vectorize", "no-tree-slp-vectorize")))
#else
#define SINGLE_LOADS
#endif

/* One register, or as many as the processor needs for it. */
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float)), __may_alias__));

typedef struct {
  const uint16_t *slots;   /* [steps][16]: a place in the table */
  const float *values;     /* [steps][16], */
  const uint16_t *halves;  /* or the same in bf16, or both NULL: all are 1 and the table has both signs */
  const float *scale;      /* [in], or NULL: what the columns of D are multiplied by */
  const uint16_t *lengths; /* [slices]: steps */
  const uint8_t *order;    /* [slices][16]: the neuron, from the window's first */
  const int32_t *starts;   /* [windows]: the first step */
  int32_t first, count;    /* of the call's rows those that this matrix is for */
} Matrix;

typedef struct {
  const void *x;             /* [rows][in] */
  void *y;                   /* [rows][out] */
  const Matrix *matrices;
  const int32_t *rows;       /* which row of x and y; the same may be there for several matrices */
  const float *coefficients; /* [.][width], or NULL: 1 */
  const int32_t *entries;    /* for each of `rows` which of the coefficients */
  int64_t in, out, width;    /* width is out or 1 */
  int32_t num_matrices, tokens; /* a row is so many consecutive rows of x and y */
  int32_t x_is_bf16, y_is_bf16;
} Call;

/* Inputs of one matrix that are multiplied together: 1, or up to 16. */
typedef struct {
  const Matrix *matrix;
  int32_t first, count; /* tokens, from the matrix's first */
  float *table;
} Block;

static float from_bf16(uint16_t bits) {
  uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

static uint16_t to_bf16(float value) {
  uint32_t wide;
  memcpy(&wide, &value, sizeof wide);
  if ((wide & 0x7fffffff) > 0x7f800000) return (uint16_t)(wide >> 16 | 0x40); /* stays not a number */
  return (uint16_t)((wide + 0x7fff + (wide >> 16 & 1)) >> 16);
}

static int64_t row_of(const Call *call, const Block *block, int64_t token) {
  int64_t number = block->first + token;
  return (int64_t)call->rows[block->matrix->first + number / call->tokens] * call->tokens + number % call->tokens;
}

/* Inputs `first` to `end` of every token, side by side. */
static void take_inputs(const Call *call, const Block *block, int64_t lanes, int64_t first, int64_t end) {
  for (int64_t token = 0; token < block->count; token++) {
    const int64_t at = row_of(call, block, token) * call->in;
    float *to = block->table + token;
    if (call->x_is_bf16)
      for (int64_t i = first; i < end; i++) to[i * lanes] = from_bf16(((const uint16_t *)call->x)[at + i]);
    else
      for (int64_t i = first; i < end; i++) to[i * lanes] = ((const float *)call->x)[at + i];
  }
}

/* [in] inputs, scaled; where values are signs the negated inputs behind them; at the end a zero for padding. Each entry
   is `lanes` inputs wide. A few inputs of all tokens at a time stay in the first level of cache. */
EACH_PROCESSOR
static void fill_table(const Call *call, const Block *block, int64_t lanes) {
  const Matrix *m = block->matrix;
  const int64_t in = call->in, step = lanes == 1 ? in : LANES;
  const int signs = !m->values && !m->halves;
  float *table = block->table, *negated = table + in * lanes;
  if (block->count < lanes) memset(table, 0, (size_t)(in * lanes) * sizeof *table);
  for (int64_t first = 0; first < in; first += step) {
    const int64_t end = first + step < in ? first + step : in;
    take_inputs(call, block, lanes, first, end);
    if (m->scale)
      for (int64_t i = first; i < end; i++)
        for (int64_t lane = 0; lane < lanes; lane++) table[i * lanes + lane] *= m->scale[i];
    if (signs)
      for (int64_t i = first * lanes; i < end * lanes; i++) negated[i] = -table[i];
  }
  memset(signs ? negated + in * lanes : negated, 0, (size_t)lanes * sizeof *table);
}

/* Where a matrix's window is, from one of its slices on. */
typedef struct {
  const uint16_t *slots, *lengths;
  const uint8_t *order;
  const float *values;
  const uint16_t *halves;
} Window;

static Window at_window(const Matrix *m, int64_t window) {
  const int64_t first = (int64_t)m->starts[window] * LANES;
  return (Window){
      m->slots + first,
      m->lengths + window * SLICES,
      m->order + window * WINDOW,
      m->values ? m->values + first : NULL,
      m->halves ? m->halves + first : NULL,
  };
}

/* From the slice behind one of so many entries on. */
static inline Window next_slice(Window w, int64_t entries) {
  return (Window){
      w.slots + entries,
      w.lengths + 1,
      w.order + LANES,
      w.values ? w.values + entries : NULL,
      w.halves ? w.halves + entries : NULL,
  };
}

/* Adds the entries of eight neurons, or of four: term(j) is what entry j is multiplied by. */
#define ADD_4(term)                                                                                              \
  a += term(0) table[w.slots[at]], b += term(1) table[w.slots[at + 1]], c += term(2) table[w.slots[at + 2]],     \
      d += term(3) table[w.slots[at + 3]]
#define ADD_8(term)                                                                                              \
  ADD_4(term), e += term(4) table[w.slots[at + 4]], f += term(5) table[w.slots[at + 5]],                         \
      g += term(6) table[w.slots[at + 6]], h += term(7) table[w.slots[at + 7]]
#define SIGN(j)
#define VALUE(j) w.values[at + j] *
#define HALF(j) from_bf16(w.halves[at + j]) *
#define EACH_STEP(add)                                                                                           \
  for (int64_t at = first; at < end; at += LANES) add

/* sums[neuron of the window], of one input: eight neurons at a time hide the latency of the sums. */
EACH_PROCESSOR SINGLE_LOADS
static void sum_one(const Block *block, int64_t window, float *restrict sums) {
  const float *restrict table = block->table;
  Window w = at_window(block->matrix, window);
  for (int slice = 0; slice < SLICES; slice++) {
    const int64_t end = (int64_t)*w.lengths * LANES;
    for (int first = 0; first < LANES; first += 8) {
      float a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
      if (w.values)
        EACH_STEP(ADD_8(VALUE));
      else if (w.halves)
        EACH_STEP(ADD_8(HALF));
      else
        EACH_STEP(ADD_8(SIGN));
      const uint8_t *o = w.order + first;
      sums[o[0]] = a, sums[o[1]] = b, sums[o[2]] = c, sums[o[3]] = d;
      sums[o[4]] = e, sums[o[5]] = f, sums[o[6]] = g, sums[o[7]] = h;
    }
    w = next_slice(w, end);
  }
}

/* sums[neuron of the window][input], of 16 inputs. */
EACH_PROCESSOR
static void sum_many(const Block *block, int64_t window, Lanes *restrict sums) {
  const Lanes *restrict table = (const Lanes *)block->table;
  Window w = at_window(block->matrix, window);
  for (int slice = 0; slice < SLICES; slice++) {
    const int64_t end = (int64_t)*w.lengths * LANES;
    for (int first = 0; first < LANES; first += 4) {
      Lanes a = {0}, b = {0}, c = {0}, d = {0};
      if (w.values)
        EACH_STEP(ADD_4(VALUE));
      else if (w.halves)
        EACH_STEP(ADD_4(HALF));
      else
        EACH_STEP(ADD_4(SIGN));
      const uint8_t *o = w.order + first;
      sums[o[0]] = a, sums[o[1]] = b, sums[o[2]] = c, sums[o[3]] = d;
    }
    w = next_slice(w, end);
  }
}

SINGLE_LOADS
static void take_lane(const float *restrict sums, int64_t lane, int64_t count, float *restrict found) {
  for (int64_t i = 0; i < count; i++) found[i] = sums[i * LANES + lane];
}

/* y[row][window] += coefficients * found */
EACH_PROCESSOR
static void add(const Call *call, int64_t row, int64_t item, int64_t window, float *restrict found) {
  const int64_t begin = window * WINDOW, left = call->out - begin, count = left < WINDOW ? left : WINDOW;
  if (call->coefficients) {
    const float *c = call->coefficients + call->entries[item] * call->width;
    if (call->width == 1)
      for (int64_t i = 0; i < count; i++) found[i] *= c[0];
    else
      for (int64_t i = 0; i < count; i++) found[i] *= c[begin + i];
  }
  if (call->y_is_bf16) {
    uint16_t *y = (uint16_t *)call->y + row * call->out + begin;
    for (int64_t i = 0; i < count; i++) y[i] = to_bf16(from_bf16(y[i]) + found[i]);
  } else {
    float *y = (float *)call->y + row * call->out + begin;
    for (int64_t i = 0; i < count; i++) y[i] += found[i];
  }
}

static void run_window(const Call *call, const Block *block, int64_t window) {
  Lanes lanes[WINDOW];
  float *sums = (float *)lanes, found[WINDOW];
  if (block->count == 1)
    sum_one(block, window, sums);
  else
    sum_many(block, window, lanes);
  for (int64_t token = 0; token < block->count; token++) {
    const int64_t item = block->matrix->first + (block->first + token) / call->tokens;
    if (block->count > 1) take_lane(sums, token, WINDOW, found);
    add(call, row_of(call, block, token), item, window, block->count > 1 ? found : sums);
  }
}

static int64_t cut(const Matrix *matrix, int32_t tokens, Block *blocks) {
  int64_t made = 0;
  const int32_t total = matrix->count * tokens, step = total <= FEW ? 1 : LANES;
  for (int32_t first = 0; first < total; first += step, made++)
    if (blocks) blocks[made] = (Block){matrix, first, total - first < step ? total - first : step, NULL};
  return made;
}

/* Tables are made for as many blocks as fit the second level of cache, then all of their windows are summed. */
static const int64_t CACHE = 1 << 20;

/* 0, or 1 where there is no memory; then y is as it was. */
int patchbay_add_rows(const Call *call, int threads) {
  int64_t num_blocks = 0;
  for (int32_t i = 0; i < call->num_matrices; i++) num_blocks += cut(call->matrices + i, call->tokens, NULL);
  const int64_t size = (2 * call->in + 1) * LANES, windows = (call->out + WINDOW - 1) / WINDOW;
  int64_t group = CACHE / (size * (int64_t)sizeof(float));
  group = group < threads ? threads : group;
  group = group > num_blocks ? num_blocks : group;
  Block *blocks = malloc((size_t)num_blocks * sizeof *blocks);
  float *tables = aligned_alloc(64, (size_t)((group * size + LANES) * (int64_t)sizeof *tables / 64 * 64));
  if (!blocks || !tables) {
    free(blocks);
    free(tables);
    return 1;
  }
  int64_t made = 0;
  for (int32_t i = 0; i < call->num_matrices; i++) made += cut(call->matrices + i, call->tokens, blocks + made);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  for (int64_t first = 0; first < num_blocks; first += group) {
    const int64_t end = first + group < num_blocks ? first + group : num_blocks;
#ifdef _OPENMP
#pragma omp for
#endif
    for (int64_t i = first; i < end; i++) {
      blocks[i].table = tables + (i - first) * size;
      fill_table(call, blocks + i, blocks[i].count == 1 ? 1 : LANES);
    }
    /* One window is one thread's: several matrices may add to the same row. */
#ifdef _OPENMP
#pragma omp for
#endif
    for (int64_t window = 0; window < windows; window++)
      for (int64_t i = first; i < end; i++) run_window(call, blocks + i, window);
  }
  free(blocks);
  free(tables);
  return 0;
}

/* dense [out][in] += c D; `coefficients` [out], or [1] where `width` is 1. */
void patchbay_add_entries(const Matrix *m, const float *coefficients, int64_t width, int64_t in, int64_t out,
                          float *dense) {
  const int signs = !m->values && !m->halves;
  for (int64_t begin = 0; begin < out; begin += WINDOW) {
    Window w = at_window(m, begin / WINDOW);
    for (int slice = 0; slice < SLICES; slice++) {
      const int64_t end = (int64_t)*w.lengths * LANES;
      for (int64_t at = 0; at < end; at++) {
        const int64_t slot = w.slots[at], column = slot < in ? slot : slot - in;
        if (column == in || (!signs && slot >= in)) continue; /* padding */
        const int64_t neuron = begin + w.order[at % LANES];
        float value = w.values ? w.values[at] : w.halves ? from_bf16(w.halves[at]) : slot < in ? 1.0f : -1.0f;
        if (m->scale) value *= m->scale[column];
        dense[neuron * in + column] += coefficients[width == 1 ? 0 : neuron] * value;
      }
      w = next_slice(w, end);
    }
  }
}
