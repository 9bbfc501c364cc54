// One token for each running slot, and the step state moved on by one (push.h: mrl_push_sample).
//
// A workgroup owns a slot. With l = the logits, lowest id first among equals everywhere:
//   1. repetition penalty r: l = l > 0 ? l / r : l * r for tokens already seen; then l += bias
//   2. temperature 0: the largest l. Otherwise, with w = exp((l - max l) / temperature):
//   3. top-k keeps the k largest l, exactly k
//   4. top-p keeps the shortest run of the largest that weighs >= top_p of what top-k left, at least one
//   5. min-p keeps w >= min_p (the largest w is 1)
//   6. u = Philox(seed, draws); the first kept token whose running sum of w exceeds u * (sum of w), tokens
//      taken in the order of (id mod 1024, id)
// Log-probabilities are those of the logits as they came. NaN, +inf, or no finite logit end the slot.
//
// Steps 3 and 4 keep a leading part of one order, (l descending, id ascending), so all that they leave is
// a cut: a pair (key of l, reversed id), and a token is kept when its pair is not below. Float sums run over
// 1024 columns of ids equal modulo 1024, then a scan, in an order that does not depend on the workgroup's
// size; everything else is integers. Order of steps and the penalty: transformers' logits processors.
#include "include/rng.glsl"

layout(local_size_x_id = 0) in;
layout(push_constant, scalar) uniform Push { mrl_push_sample p; };

#define tid gl_LocalInvocationIndex
#define threads gl_WorkGroupSize.x
#define slot gl_WorkGroupID.x
#define COLUMNS 1024u
#define LAST (COLUMNS - 1u)
#define BINS 2048u
#define ID_MASK 0x3fffffu          // two digits; csrc/ops/sample.c keeps ids below 2^21
#define KEY_NEG_INF 0x007fffffu
#define KEY_INF 0xff800000u
#define NEG_INF uintBitsToFloat(0xff800000u)
#define LOWEST uintBitsToFloat(0xff7fffffu)

shared uint pool[BINS];            // histogram; or candidates (key, then id at + COLUMNS); or column sums
shared float scan_a[COLUMNS], scan_b[COLUMNS];
shared uint bias_filter[64];       // bit id mod 2048: maybe biased
shared uint best_key, best_id, found, gathered, chosen_digit, chosen_need, chosen_count;

uint row, biases;
float penalty, temperature, peak;

uint param(uint field) { return BufU32(p.params).v[slot * MRL_SLOT_WORDS + field]; }
float param_float(uint field) { return uintBitsToFloat(param(field)); }

// Unsigned integers in the order of the floats; -0 counts as 0 and NaN is above everything.
uint key_of(float x)
{
    uint u = floatBitsToUint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return 0xffffffffu;
    u = u == 0x80000000u ? 0u : u;
    return (u & 0x80000000u) != 0u ? ~u : u | 0x80000000u;
}

float of_key(uint key)
{
    return uintBitsToFloat((key & 0x80000000u) != 0u ? key & 0x7fffffffu : ~key);
}

// The list is sorted by id (csrc/engine/generator.c).
float bias_of(uint id)
{
    uint base = slot * MRL_BIAS_MAX, lo = 0u, hi = biases;
    while (lo < hi) {
        uint mid = (lo + hi) >> 1;
        uvec2 entry = BufU32x2(p.bias).v[base + mid];
        if (entry.x == id)
            return uintBitsToFloat(entry.y);
        if (entry.x < id)
            lo = mid + 1u;
        else
            hi = mid;
    }
    return 0.0;
}

bool is_seen(uint id)
{
    return (BufU32(p.seen).v[slot * ((p.vocab + 31u) >> 5) + (id >> 5)] >> (id & 31u) & 1u) != 0u;
}

// Later passes must meet the same bits again: precise forbids contraction.
float logit(uint id, bool raw)
{
    precise float x = uintBitsToFloat(BufU32(p.logits).v[row + id]);
    if (raw)
        return x;
    if (penalty != 1.0 && is_seen(id))
        x = x > 0.0 ? x / penalty : x * penalty;
    if (biases > 0u && (bias_filter[id >> 5 & 63u] >> (id & 31u) & 1u) != 0u)
        x = x + bias_of(id);
    return x;
}

// exp of -inf is a tiny number on some devices.
float weight(float x) { return x > LOWEST ? exp((x - peak) / temperature) : 0.0; }

bool kept(uvec2 cut, uint key, uint id)
{
    return key > cut.x || (key == cut.x && (~id & ID_MASK) >= cut.y);
}

// The largest key of the workgroup and its lowest id.
uvec2 arg_max(uint key, uint id)
{
    barrier();
    if (tid == 0u) {
        best_key = 0u;
        best_id = ~0u;
    }
    barrier();
    uint top = subgroupMax(key);
    if (subgroupElect())
        atomicMax(best_key, top);
    barrier();
    uint lowest = subgroupMin(key == best_key ? id : ~0u);
    if (subgroupElect())
        atomicMin(best_id, lowest);
    barrier();
    return uvec2(best_key, best_id);
}

// scan_a becomes its running sum; returns the last.
float scan()
{
    barrier();
    for (uint s = 1u; s < COLUMNS; s <<= 2) {
        for (uint c = tid; c < COLUMNS; c += threads)
            scan_b[c] = scan_a[c] + (c >= s ? scan_a[c - s] : 0.0);
        barrier();
        for (uint c = tid; c < COLUMNS; c += threads)
            scan_a[c] = scan_b[c] + (c >= 2u * s ? scan_b[c - 2u * s] : 0.0);
        barrier();
    }
    return scan_a[LAST];
}

// Largest raw logit with its id, and log(sum(exp(raw))), in one pass: each column rescales when its
// maximum grows.
uvec2 raw_stats(out float log_sum)
{
    uint key = 0u, id = ~0u;
    barrier();
    for (uint c = tid; c < COLUMNS; c += threads) {
        float most = LOWEST, sum = 0.0;
        for (uint first = c; first < p.vocab; first += 4u * COLUMNS) {
            float x[4];
            float grown = most;
            [[unroll]] for (uint j = 0u; j < 4u; j++) {
                uint i = first + j * COLUMNS;
                x[j] = i < p.vocab ? logit(i, true) : NEG_INF;
                uint k = key_of(x[j]);
                if (k > key || (k == key && i < id)) {
                    key = k;
                    id = i;
                }
                grown = max(grown, x[j]);
            }
            sum *= exp(most - grown);
            [[unroll]] for (uint j = 0u; j < 4u; j++)
                sum += exp(x[j] - grown);
            most = grown;
        }
        scan_a[c] = sum;
        scan_b[c] = most;
    }
    uvec2 best = arg_max(key, id);
    float largest = of_key(best.x);
    for (uint c = tid; c < COLUMNS; c += threads)
        scan_a[c] *= exp(scan_b[c] - largest);
    log_sum = largest + log(scan());
    return best;
}

uvec2 adjusted_max()
{
    uint key = 0u, id = ~0u;
    for (uint i = tid; i < p.vocab; i += threads) {
        uint k = key_of(logit(i, false));
        if (k > key) {
            key = k;
            id = i;
        }
    }
    return arg_max(key, id);
}

// Weight (or number) of the kept tokens with w >= least. Leaves the columns' sums in pool and their
// running sum in scan_a.
float mass(uvec2 cut, float least, bool counting)
{
    barrier();
    for (uint c = tid; c < COLUMNS; c += threads) {
        float sum = 0.0;
        for (uint i = c; i < p.vocab; i += COLUMNS) {
            float x = logit(i, false);
            if (kept(cut, key_of(x), i)) {
                float w = weight(x);
                sum += counting ? 1.0 : w >= least ? w : 0.0;
            }
        }
        scan_a[c] = sum;
        pool[c] = floatBitsToUint(sum);
    }
    return scan();
}

// The cut that keeps exactly the first `need` tokens, 1 <= need <= vocab: radix selection over the key in
// digits of 11, 11, 10 bits, then, among equal keys, over the reversed id in two of 11.
uvec2 select(uint need, bool raw)
{
    const uint shifts[5] = uint[](21u, 10u, 0u, 11u, 0u);
    const uint masks[5] = uint[](0u, 0xffe00000u, 0xfffffc00u, 0xffffffffu, 0xffffffffu);
    uvec2 cut = uvec2(0u);
    for (uint digit = 0u; digit < 5u; digit++) {
        uint shift = shifts[digit], mask = masks[digit], id_mask = digit == 4u ? 0x3ff800u : 0u;
        uint digit_mask = digit == 2u ? 1023u : 2047u;
        barrier();
        for (uint b = tid; b < BINS; b += threads)
            pool[b] = 0u;
        barrier();
        for (uint i = tid; i < p.vocab; i += threads) {
            uint key = key_of(logit(i, raw)), id = ~i & ID_MASK;
            if ((key & mask) == cut.x && (id & id_mask) == cut.y)
                atomicAdd(pool[(digit < 3u ? key : id) >> shift & digit_mask], 1u);
        }
        barrier();
        // Counts stay below 2^24: exact in the float scan. Column c is bins LAST - c, two each.
        for (uint c = tid; c < COLUMNS; c += threads)
            scan_a[c] = float(pool[BINS - 1u - 2u * c] + pool[BINS - 2u - 2u * c]);
        scan();
        for (uint c = tid; c < COLUMNS; c += threads) {
            uint upto = uint(scan_a[c]), before = c > 0u ? uint(scan_a[c - 1u]) : 0u;
            if (before < need && upto >= need) {
                uint bin = BINS - 1u - 2u * c;
                if (before + pool[bin] < need)
                    before += pool[bin--];
                chosen_digit = bin;
                chosen_need = need - before;
                chosen_count = pool[bin];
            }
        }
        barrier();
        if (digit < 3u)
            cut.x |= chosen_digit << shift;
        else
            cut.y |= chosen_digit << shift;
        need = chosen_need;
        if (need == chosen_count)
            break;
    }
    return cut;
}

// Tokens not below the cut (at most COLUMNS) to pool, in the order (logit descending, id ascending).
uint gather_sorted(uvec2 cut, bool raw)
{
    barrier();
    if (tid == 0u)
        gathered = 0u;
    for (uint c = tid; c < COLUMNS; c += threads) {
        pool[c] = 0u;
        pool[COLUMNS + c] = ~0u;
    }
    barrier();
    for (uint i = tid; i < p.vocab; i += threads) {
        uint key = key_of(logit(i, raw));
        if (kept(cut, key, i)) {
            uint at = atomicAdd(gathered, 1u);
            if (at < COLUMNS) {
                pool[at] = key;
                pool[COLUMNS + at] = i;
            }
        }
    }
    barrier();
    uint count = min(gathered, COLUMNS);
    for (uint size = 2u; size < 2u * count; size <<= 1) // bitonic
        for (uint stride = size >> 1; stride > 0u; stride >>= 1) {
            for (uint t = tid; t < COLUMNS / 2u; t += threads) {
                uint a = 2u * t - (t & (stride - 1u)), b = a + stride;
                uvec2 u = uvec2(pool[a], pool[COLUMNS + a]), v = uvec2(pool[b], pool[COLUMNS + b]);
                bool reversed = v.x > u.x || (v.x == u.x && v.y < u.y);
                if (a < 2u * count && reversed == ((a & size) == 0u)) {
                    pool[a] = v.x;
                    pool[COLUMNS + a] = v.y;
                    pool[b] = u.x;
                    pool[COLUMNS + b] = u.y;
                }
            }
            barrier();
        }
    return count;
}

// The cut of top-p behind the cut of top-k, which keeps `count` tokens.
uvec2 nucleus(uvec2 cut, uint count, float top_p)
{
    bool whole = count <= COLUMNS;
    uvec2 few = cut;
    float total = 0.0;
    if (!whole) {
        few = select(COLUMNS, false);
        total = mass(cut, 0.0, false);
    }
    uint n = gather_sorted(few, false);
    for (uint c = tid; c < COLUMNS; c += threads)
        scan_a[c] = c < n ? weight(of_key(pool[c])) : 0.0;
    float sum = scan();
    float target = top_p * (whole ? sum : total);
    if (tid == 0u)
        found = COLUMNS;
    barrier();
    for (uint c = tid; c < n; c += threads)
        if (scan_a[c] >= target)
            atomicMin(found, c);
    barrier();
    if (found < COLUMNS)
        return uvec2(pool[found], ~pool[COLUMNS + found] & ID_MASK);

    // A flat distribution: more than COLUMNS tokens. Bisect the key, then cut the ties by number.
    uint lo = cut.x, hi = few.x + 1u;
    while (hi - lo > 1u) {
        uint mid = lo + (hi - lo) / 2u;
        if (mass(uvec2(mid, 0u), 0.0, false) >= target)
            lo = mid;
        else
            hi = mid;
    }
    float above = mass(uvec2(hi, 0u), 0.0, false);
    float ties = max(1.0, ceil((target - above) / weight(of_key(lo))));
    float need = mass(uvec2(hi, 0u), 0.0, true) + ties;
    return select(min(uint(min(need, 4e6)), count), false);
}

uint draw(uvec2 cut, float min_p)
{
    float total = mass(cut, min_p, false);
    uvec2 seed = uvec2(param(MRL_SLOT_SEED_LO), param(MRL_SLOT_SEED_HI));
    float u = uniform24(philox4x32(uvec4(param(MRL_SLOT_DRAWS), 0u, 0u, 0u), seed).x);
    float rest = u * total;
    if (tid == 0u)
        found = ~0u;
    barrier();
    // The first column that goes beyond; when rounding leaves none, the last that weighs anything.
    for (uint c = tid; c < COLUMNS; c += threads)
        if (uintBitsToFloat(pool[c]) > 0.0)
            atomicMin(found, scan_a[c] > rest ? c : 2u * COLUMNS - c);
    barrier();
    uint column = found < COLUMNS ? found : 2u * COLUMNS - found;
    rest -= column > 0u ? scan_a[column - 1u] : 0.0;
    uint n = (p.vocab - column + LAST) / COLUMNS;
    for (uint j = tid; j < n; j += threads) {
        uint i = column + j * COLUMNS;
        float x = logit(i, false), w = weight(x);
        pool[j] = floatBitsToUint(kept(cut, key_of(x), i) && w >= min_p ? w : 0.0);
    }
    barrier();
    if (tid == 0u) {
        float sum = 0.0;
        for (uint j = 0u; j < n && sum <= rest; j++) {
            float w = uintBitsToFloat(pool[j]);
            if (w > 0.0)
                found = column + j * COLUMNS;
            sum += w;
        }
    }
    barrier();
    return found;
}

// The next token; best is the largest raw logit. A key of +inf or NaN, or none finite, means failure.
bool choose(uvec2 best, out uint token)
{
    if (penalty != 1.0 || biases > 0u)
        best = adjusted_max();
    token = best.y;
    if (best.x >= KEY_INF || best.x <= KEY_NEG_INF)
        return false;
    if (temperature == 0.0)
        return true;
    peak = of_key(best.x);
    uint top_k = param(MRL_SLOT_TOP_K), count = p.vocab;
    float top_p = param_float(MRL_SLOT_TOP_P);
    uvec2 cut = uvec2(0u);
    if (top_k > 0u && top_k < p.vocab) {
        count = top_k;
        cut = select(count, false);
    }
    if (top_p < 1.0)
        cut = nucleus(cut, count, top_p);
    token = draw(cut, param_float(MRL_SLOT_MIN_P));
    return true;
}

bool is_stop(uint token)
{
    uint stops = param(MRL_SLOT_STOPS);
    for (uint i = 0u; i < stops; i++)
        if (param(MRL_SLOT_STOP_0 + i) == token)
            return true;
    return false;
}

void main()
{
    int position = BufI32(p.positions).v[slot];
    BufU32 ring = BufU32(p.ring);
    uint entry = (BufU32(p.step).v[0] % MRL_RING_STEPS * p.slots + slot) * MRL_RING_WORDS;
    uint token = ~0u, finish = MRL_FINISH_NONE, tops = 0u;
    float logprob = 0.0;

    if (position >= 0) {
        row = slot * p.vocab;
        biases = param(MRL_SLOT_BIASES);
        penalty = param_float(MRL_SLOT_REPEAT);
        temperature = param_float(MRL_SLOT_TEMPERATURE);
        for (uint i = tid; i < 64u; i += threads)
            bias_filter[i] = 0u;
        barrier();
        for (uint i = tid; i < biases; i += threads) {
            uint id = BufU32x2(p.bias).v[slot * MRL_BIAS_MAX + i].x;
            atomicOr(bias_filter[id >> 5 & 63u], 1u << (id & 31u));
        }
        float log_sum;
        uvec2 best = raw_stats(log_sum);
        bool good = best.x < KEY_INF && best.x > KEY_NEG_INF && choose(best, token);
        if (good) {
            logprob = logit(token, true) - log_sum;
            tops = min(param(MRL_SLOT_LOGPROBS), p.vocab);
            if (tops > 0u)
                gather_sorted(select(tops, true), true);
            for (uint i = tid; i < tops; i += threads) {
                ring.v[entry + MRL_RING_TOP_IDS + i] = pool[COLUMNS + i];
                ring.v[entry + MRL_RING_TOP_LOGPROBS + i] = floatBitsToUint(of_key(pool[i]) - log_sum);
            }
            finish = is_stop(token) ? MRL_FINISH_STOP
                   : position + 1 >= int(param(MRL_SLOT_LIMIT)) ? MRL_FINISH_LENGTH : MRL_FINISH_NONE;
        } else {
            token = ~0u;
            finish = MRL_FINISH_NAN;
            logprob = uintBitsToFloat(0x7fc00000u);
        }
    }
    barrier(); // all have read the state
    if (tid != 0u)
        return;
    ring.v[entry + MRL_RING_TOKEN] = token;
    ring.v[entry + MRL_RING_FINISH] = finish;
    ring.v[entry + MRL_RING_LOGPROB] = floatBitsToUint(logprob);
    ring.v[entry + MRL_RING_TOPS] = tops;
    if (position >= 0)
        BufI32(p.positions).v[slot] = finish == MRL_FINISH_NONE ? position + 1 : -1;
    if (token != ~0u) {
        BufI32(p.tokens).v[slot] = int(token);
        BufU32(p.params).v[slot * MRL_SLOT_WORDS + MRL_SLOT_DRAWS]++;
        BufU32(p.seen).v[slot * ((p.vocab + 31u) >> 5) + (token >> 5)] |= 1u << (token & 31u);
    }
    // The last workgroup to arrive advances the step: by then each has read it.
    if (atomicAdd(BufU32(p.step).v[1], 1u, gl_ScopeDevice, gl_StorageSemanticsBuffer,
                  gl_SemanticsAcquireRelease) == p.slots - 1u) {
        BufU32(p.step).v[1] = 0u;
        BufU32(p.step).v[0]++;
    }
}
