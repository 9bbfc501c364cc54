// Activation functions; the numbers are mrl_activation of csrc/ops/matmul.h.
#define ACTIVATION_NONE 0
#define ACTIVATION_SILU 1
#define ACTIVATION_GELU 2
#define ACTIVATION_GELU_TANH 3
#define ACTIVATION_SWIGLU 4
#define ACTIVATION_GEGLU 5
#define ACTIVATION_GEGLU_TANH 6

bool is_gated(uint activation) { return activation >= ACTIVATION_SWIGLU; }

// erf by Abramowitz and Stegun 7.1.26 is only good to 1.5e-7 absolute, which is f32's own rounding here.
float erf_approx(float x)
{
    float a = abs(x), t = 1.0 / fma(0.3275911, a, 1.0);
    float poly = t * fma(t, fma(t, fma(t, fma(t, 1.061405429, -1.453152027), 1.421413741), -0.284496736), 0.254829592);
    return sign(x) * (1.0 - poly * exp(-a * a));
}

float activate(uint activation, float x)
{
    if (activation == ACTIVATION_SILU || activation == ACTIVATION_SWIGLU)
        return x / (1.0 + exp(-x));
    if (activation == ACTIVATION_GELU || activation == ACTIVATION_GEGLU)
        return 0.5 * x * (1.0 + erf_approx(x * 0.70710678118654752));
    if (activation == ACTIVATION_GELU_TANH || activation == ACTIVATION_GEGLU_TANH) {
        // 0.5 (1 + tanh u) = sigmoid(2u): no overflow of exp(2u) to inf / inf.
        float u = 0.7978845608028654 * (x + 0.044715 * x * x * x);
        return x / (1.0 + exp(-2.0 * u));
    }
    return x;
}
