/* The state of a gated delta net's layers: what stands in place of a cache. */
#ifndef MRL_ENGINE_DELTA_STATE_H
#define MRL_ENGINE_DELTA_STATE_H

#include "ops/delta.h"

typedef struct mrl_delta_state mrl_delta_state;

/* Ring and S of each layer, f32, contents undefined: a row at position 0 reads neither. sizes: those of a layer, its
 * buffers are not looked at. VALUE errors for sizes, STATE while this thread captures (the memory must outlive the
 * program). */
mrl_status mrl_delta_state_create(mrl_device *dev, uint32_t layers, const mrl_delta *sizes, mrl_delta_state **out,
                                  mrl_error *err);
void mrl_delta_state_free(mrl_delta_state *state); /* NULL allowed */

uint32_t mrl_delta_state_layers(const mrl_delta_state *state);
uint64_t mrl_delta_state_bytes(const mrl_delta_state *state); /* of all layers */
/* What ops take, borrowed for the life of the state; VALUE when there is no such layer. */
mrl_status mrl_delta_state_layer(const mrl_delta_state *state, uint32_t layer, mrl_delta *out, mrl_error *err);

#endif
