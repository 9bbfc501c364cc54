/* Sampling: what a step leaves in the step state, on the device (shaders/sample/). */
#ifndef MRL_OPS_SAMPLE_H
#define MRL_OPS_SAMPLE_H

#include "ops/view.h"

#define MRL_VOCAB_MAX                                                                              \
    (1u << 21) /* sample.comp: ids in two digits of a histogram, counts exact in f32 */

/* The step state as ops see it: one row a slot. Borrowed; shaders/include/push.h names the fields.
 */
typedef struct mrl_step_buffers {
    mrl_buffer *tokens;    /* (slots) i32 */
    mrl_buffer *positions; /* (slots) i32, -1 idle */
    mrl_buffer *params;    /* (slots, MRL_SLOT_WORDS) u32 */
    mrl_buffer *seen;      /* (slots, ceil(vocab / 32)) u32 */
    mrl_buffer *bias;      /* (slots, MRL_BIAS_MAX, 2) u32, sorted by id */
    mrl_buffer *ring;      /* (MRL_RING_STEPS, slots, MRL_RING_WORDS) u32, host-visible */
    mrl_buffer *step;      /* (2) u32: steps done, workgroups of this step done */
    uint32_t slots, vocab; /* slots * vocab < 2^31, vocab <= MRL_VOCAB_MAX */
} mrl_step_buffers;

/* An edit of the step state: field is MRL_SLOT_* or MRL_EDIT_*. */
typedef struct mrl_edit {
    uint32_t slot, field, value;
} mrl_edit;

/* Draws the next token of every running slot from logits (slots, vocab) f32 and moves the state on
 * by a step. */
mrl_status mrl_sample(const mrl_view *logits, const mrl_step_buffers *state, mrl_error *err);

/* Applies count > 0 edits (copied), in stream order. No (slot, field) twice but MRL_EDIT_SEEN;
 * MRL_EDIT_CLEAR_SEEN comes before MRL_EDIT_SEEN wherever it stands. Values are the caller's to
 * check. */
mrl_status mrl_edit_slots(const mrl_edit *edits, uint32_t count, const mrl_step_buffers *state,
                          mrl_error *err);

#endif
