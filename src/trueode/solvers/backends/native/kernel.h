/* The numerics, for numbers of type T and vectors of VBYTES bytes; native.c includes this file once
 * for each such pair.
 *
 * Samples are processed in blocks of two vectors. A block is stored feature by feature, with the
 * samples of a feature side by side. A layer of any width is then a sum of vectors times scalars,
 * and samples are combined only in the gradients of the weights. These are summed within a block,
 * then over the blocks of a part, then over the parts, always in this order, so the result does not
 * depend on the number of threads.
 */

#define vec NAME(vec)
#define ivec NAME(ivec)
#define Packed NAME(Packed)
#define Plan NAME(Plan)
#define Span NAME(Span)
#define WholeBatch NAME(WholeBatch)
#define PerSample NAME(PerSample)
#define loose NAME(loose)
#define Transform NAME(Transform)
#define View NAME(View)
#define Sums NAME(Sums)
#define Finish NAME(Finish)
#define halfvec NAME(halfvec)
#define LANES ((int64_t)(VBYTES / sizeof(T)))
#define BLOCK (2 * LANES)

typedef T vec __attribute__((vector_size(VBYTES)));
typedef T halfvec __attribute__((vector_size(VBYTES / 2)));
typedef I ivec __attribute__((vector_size(VBYTES)));

#include "activations.h"
#include "layers.h"
#include "winograd.h"
#include "fixed.h"
#include "divergence.h"
#include "image_layers.h"
#include "adaptive.h"
#include "per_sample.h"

#undef vec
#undef ivec
#undef Packed
#undef Plan
#undef Span
#undef WholeBatch
#undef PerSample
#undef loose
#undef Transform
#undef View
#undef Sums
#undef Finish
#undef halfvec
#undef ALWAYS
#undef OF_PART
#undef LANES
#undef BLOCK
#undef TYPE
#undef T
#undef I
