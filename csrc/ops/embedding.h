/* Embedding: rows of a weight matrix gathered by id and decoded. */
#ifndef MRL_OPS_EMBEDDING_H
#define MRL_OPS_EMBEDDING_H

#include "ops/weight.h"

/* y (rows, k) f32 | f16 | bf16 = W[ids], ids (rows) i32. Ids outside 0 .. n - 1 are clamped on the
 * device: they come from the step state, where idle slots hold any. Whoever takes ids from people
 * checks them first. */
mrl_status mrl_op_embedding(mrl_device *dev, const mrl_weight *w, const mrl_view *ids,
                            const mrl_view *y, mrl_error *err);

#endif
