// y[row] = residual[row] + sum over the slots s of a row of weight[s] * (x[row, s] . W[expert[s]]^T): one product whose
// k runs over all chosen experts, so that a workgroup finishes its columns of y by itself, always in the same order.
//
//   staged x   | weight[0] * x[row, 0], padded | weight[1] * x[row, 1], padded | ...
//   row n of W | row n of expert[0]            | row n of expert[1]            | ...
//
// Everything else is matmul/gemv.glsl. Workgroup (x, y) = (block of columns of y, row).
#include "matmul/gemv_constants.glsl"
layout(push_constant, scalar) uniform Push { mrl_push_moe p; };
#define ROW_SCALE(n) 1.0 // a scale a row differs between experts: it is applied in the product
#include "include/epilogue.glsl"

shared uint slot_row[MRL_MOE_SLOTS_MAX]; // first row of the slot's expert in the planes
shared float slot_weight[MRL_MOE_SLOTS_MAX];

bool gemv_prologue()
{
    const uint first = gl_WorkGroupID.y * p.slots;
    if (BufI32(p.ids).v[first] < 0)
        return false;
    if (BROADCAST != 0)
        return true;
    for (uint i = 0; i < p.slots; i += gl_WorkGroupSize.x) {
        const uint slot = i + gl_LocalInvocationIndex;
        if (slot < p.slots) {
            slot_row[slot] = uint(BufI32(p.ids).v[first + slot]) * p.n;
            slot_weight[slot] = BufF32(p.weights).v[first + slot];
        }
    }
    barrier();
    return true;
}

uint unit_at(uint row, uint unit);
uint group_at(uint row, uint k);
void load_x(uint m, uint k, out float v[FMT_CHUNK]);
float weighted_x(uint slot, uint k);
uint row_of_slot(uint slot);

#define GEMV_PROLOGUE
#define GEMV_LOAD_X
#define K_LENGTH() (p.slots * k_padded())
#define UNIT_AT(row, unit, stride) unit_at(row, unit)
#define GROUP_AT(row, k) group_at(row, k)
#define UNIT_UNSCALED (SCALE == SCALE_NONE)
#define STORE_PAIR(m, n, a, b, second) store_pair(gl_WorkGroupID.y, n, a, b, second)
#define BROADCAST_SLOTS p.slots
#define BROADCAST_ROW(slot, row) (row_of_slot(slot) + (row))
#define BROADCAST_X(slot, k) weighted_x(slot, k)
#include "matmul/gemv.glsl"

uint pair_of_slot(uint slot) { return gl_WorkGroupID.y * p.slots + slot; }
uint row_of_slot(uint slot) { return uint(BufI32(p.ids).v[pair_of_slot(slot)]) * p.n; }

float weighted_x(uint slot, uint k)
{
    const uint pair = pair_of_slot(slot);
    return load_act(p.x, pair * p.k + k, X_TYPE) * BufF32(p.weights).v[pair];
}

uint unit_at(uint row, uint unit)
{
    const uint units = k_padded() / FMT_UNIT, slot = unit / units;
    return (slot_row[slot] + row - slot) * units + unit;
}

uint group_at(uint row, uint k)
{
    const uint slot = k / k_padded();
    return (slot_row[slot] + row) * p.groups + group_of(k - slot * k_padded());
}

// Elements k .. of the weighted slots; a chunk lies in one of them.
void load_x(uint m, uint k, out float v[FMT_CHUNK])
{
    const uint slot = k / k_padded(), at = k - slot * k_padded(), base = (gl_WorkGroupID.y * p.slots + slot) * p.k + at;
    const bool fours = (p.k & 3) == 0 && at + FMT_CHUNK <= p.k;
    const float weight = slot_weight[slot];
    [[unroll]] for (uint i = 0; i < FMT_CHUNK; i += 4) {
        if (fours) {
            vec4 x = load_act4(p.x, base + i, X_TYPE) * weight;
            [[unroll]] for (uint j = 0; j < 4; j++)
                v[i + j] = x[j];
        } else {
            [[unroll]] for (uint j = 0; j < 4; j++)
                v[i + j] = at + i + j < p.k ? load_act(p.x, base + i + j, X_TYPE) * weight : 0.0;
        }
    }
}
