// One token a slot of a gated delta net, in one dispatch: convolution, gates, the step of S, gated norm.
//
//   q, k, v = silu(window . filter);  q, k to length 1, q / sqrt(KEY_DIM)
//   d = beta (v - decay k S);  o = decay q S + (q k) d;  S = decay S + k d^T;  y = o / rms(o) * norm * silu(z)
//
// Grid (VALUE_HEADS, rows): a workgroup owns the S of a head. k S and q S come from one pass over S, so that it is
// read once and written once. With HELD, lanes keep their part of S in registers from its load, which goes out first,
// to its store: VALUE_DIM / 4 lanes lie along the columns, four each, and the others deal out the rows. Without, for
// CPUs, whose caches hold S: a lane owns columns and walks over them twice.
// No two rows may be of the same slot. The heads that share a key head all compute its q and k; the first writes them
// to the ring.
#include "delta/delta.glsl"

layout(constant_id = 10) const uint HELD = 0;   // rows of S a lane holds; 0: none
layout(constant_id = 11) const uint STREAMS = 1; // workgroup size / (VALUE_DIM / 4): how many share the rows of S

const uint QUADS = VALUE_DIM / 4;
const uint HELD_SIZE = HELD > 0 ? HELD : 1;
const uint PARTS = HELD > 0 ? 2 * STREAMS * QUADS : 1;

shared float q[KEY_DIM];
shared float k[KEY_DIM];
shared float v[VALUE_DIM]; // then o
shared vec4 parts[PARTS];  // k S, then q S, of each stream

// The convolution of one channel, which stands at x_index in the row; `keep`: its x goes to the ring.
float convolve(uvec2 x_row, uint x_index, uint channel, uint slot, uint position, bool keep)
{
    float x = load_act(x_row, x_index, X_TYPE), sum = x * BufF32(p.conv).v[channel * TAPS + TAPS - 1];
    for (uint back = 1; back < TAPS; back++)
        if (back <= position)
            sum += BufF32(ring_entry(slot, position - back)).v[channel] *
                   BufF32(p.conv).v[channel * TAPS + TAPS - 1 - back];
    if (keep)
        BufF32(ring_entry(slot, position)).v[channel] = x;
    return silu(sum);
}

void main()
{
    uint head = gl_WorkGroupID.x, row = gl_WorkGroupID.y, key_head = head / RATIO, lane = gl_LocalInvocationIndex;
    int at = BufI32(p.positions).v[row], in_slot = BufI32(p.slots).v[row];
    uvec2 y = delta_row(p.y, row, VALUE_HEADS * VALUE_DIM, Y_TYPE);

    if (!delta_valid(in_slot, at)) {
        for (uint i = lane; i < VALUE_DIM; i += gl_WorkGroupSize.x)
            store_bits(y, head * VALUE_DIM + i, Y_TYPE, 0);
        return;
    }
    uint slot = uint(in_slot), position = uint(at);
    BufF32x4 s = BufF32x4(address_at(p.state, slot * VALUE_HEADS + head, STATE_SIZE * 4));
    uint quad = lane % QUADS, stream = lane / QUADS;
    vec4 held[HELD_SIZE];
    if (HELD > 0)
        [[unroll]] for (uint i = 0; i < HELD; i++) {
            uint r = stream + i * STREAMS;
            held[i] = vec4(0.0);
            if (position > 0 && stream < STREAMS && r < KEY_DIM)
                held[i] = s.v[r * QUADS + quad];
        }

    uvec2 x = delta_row(p.x, row, KEY_HEADS * GROUP_WIDTH, X_TYPE);
    bool first = head % RATIO == 0;
    // Equally many rounds in all threads, as llvmpipe wants before a barrier; what is done twice is done alike.
    for (uint base = 0; base < KEY_DIM; base += gl_WorkGroupSize.x) {
        uint i = min(base + lane, KEY_DIM - 1), c = key_head * KEY_DIM + i;
        q[i] = convolve(x, q_at(key_head) + i, c, slot, position, first);
        k[i] = convolve(x, k_at(key_head) + i, KEY_HEADS * KEY_DIM + c, slot, position, first);
    }
    for (uint base = 0; base < VALUE_DIM; base += gl_WorkGroupSize.x) {
        uint i = min(base + lane, VALUE_DIM - 1);
        v[i] = convolve(x, v_at(head) + i, v_channel(head) + i, slot, position, true);
    }
    barrier();
    // Every subgroup adds up by itself: no barrier.
    float qq = 0.0, kk = 0.0, qk = 0.0;
    for (uint base = 0; base < KEY_DIM; base += gl_SubgroupSize) {
        uint i = base + gl_SubgroupInvocationID;
        float a = i < KEY_DIM ? q[min(i, KEY_DIM - 1)] : 0.0, b = i < KEY_DIM ? k[min(i, KEY_DIM - 1)] : 0.0;
        qq += a * a;
        kk += b * b;
        qk += a * b;
    }
    float q_factor = inversesqrt(subgroupAdd(qq) + L2_EPS) * inversesqrt(float(KEY_DIM));
    float k_factor = inversesqrt(subgroupAdd(kk) + L2_EPS);
    qk = subgroupAdd(qk) * q_factor * k_factor;
    vec2 gates = delta_gates(row, head); // beta, decay

    if (HELD > 0) {
        vec4 ks = vec4(0.0), qs = vec4(0.0);
        [[unroll]] for (uint i = 0; i < HELD; i++) {
            uint r = min(stream + i * STREAMS, KEY_DIM - 1); // beyond it, held is zeros
            ks += k[r] * held[i];
            qs += q[r] * held[i];
        }
        if (stream < STREAMS) {
            parts[stream * QUADS + quad] = ks;
            parts[(STREAMS + stream) * QUADS + quad] = qs;
        }
        barrier();
        ks = vec4(0.0);
        qs = vec4(0.0);
        for (uint n = 0; n < STREAMS; n++) {
            ks += parts[n * QUADS + quad];
            qs += parts[(STREAMS + n) * QUADS + quad];
        }
        vec4 value = vec4(v[4 * quad], v[4 * quad + 1], v[4 * quad + 2], v[4 * quad + 3]);
        vec4 d = gates.x * (value - gates.y * k_factor * ks);
        vec4 o = gates.y * q_factor * qs + qk * d;
        d *= k_factor;
        [[unroll]] for (uint i = 0; i < HELD; i++) {
            uint r = stream + i * STREAMS;
            if (stream < STREAMS && r < KEY_DIM)
                s.v[r * QUADS + quad] = gates.y * held[i] + k[r] * d;
        }
        barrier(); // v has been read
        if (stream == 0)
            [[unroll]] for (uint j = 0; j < 4; j++)
                v[4 * quad + j] = o[j];
    } else {
        for (uint n = lane; n < QUADS; n += gl_WorkGroupSize.x) {
            vec4 ks = vec4(0.0), qs = vec4(0.0);
            for (uint r = 0; position > 0 && r < KEY_DIM; r++) {
                vec4 old = s.v[r * QUADS + n];
                ks += k[r] * old;
                qs += q[r] * old;
            }
            vec4 value = vec4(v[4 * n], v[4 * n + 1], v[4 * n + 2], v[4 * n + 3]);
            vec4 d = gates.x * (value - gates.y * k_factor * ks);
            vec4 o = gates.y * q_factor * qs + qk * d;
            d *= k_factor;
            for (uint r = 0; r < KEY_DIM; r++) {
                vec4 old = position > 0 ? s.v[r * QUADS + n] : vec4(0.0);
                s.v[r * QUADS + n] = gates.y * old + k[r] * d;
            }
            [[unroll]] for (uint j = 0; j < 4; j++) // this lane's own elements
                v[4 * n + j] = o[j];
        }
    }
    barrier();
    float squares = 0.0;
    for (uint base = 0; base < VALUE_DIM; base += gl_SubgroupSize) {
        uint i = base + gl_SubgroupInvocationID;
        float o = i < VALUE_DIM ? v[min(i, VALUE_DIM - 1)] : 0.0;
        squares += o * o;
    }
    float factor = inversesqrt(subgroupAdd(squares) / float(VALUE_DIM) + p.eps);
    for (uint base = 0; base < VALUE_DIM; base += gl_WorkGroupSize.x) {
        uint i = min(base + lane, VALUE_DIM - 1);
        float z = load_act(x, z_at(head) + i, X_TYPE);
        store_bits(y, head * VALUE_DIM + i, Y_TYPE, floatBitsToUint(v[i] * factor * BufF32(p.norm).v[i] * silu(z)));
    }
}
