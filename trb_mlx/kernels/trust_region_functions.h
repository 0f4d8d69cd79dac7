// What the body of the solve calls: C++14 that Metal, CUDA and a host compiler read alike. Before it
// come FUNCTION, SHARED, BARRIER and THREADS of one of them, and the constants of ops/trust_region.py.
// Totals and maxima of the group use shared memory alone, so every thread gets the same bits of them,
// and all leave the search together.

struct Total {
  float value, excess;  // what rounding has added to the value
};

FUNCTION Total plus(Total sum, float term) {  // Kahan
  float corrected = term - sum.excess, value = sum.value + corrected;
  return {value, (value - sum.value) - corrected};
}

struct Totals {
  Total first, second, third;
};

FUNCTION float larger(float a, float b) { return a > b ? a : b; }
FUNCTION float smaller(float a, float b) { return a < b ? a : b; }
FUNCTION float within(float x, float low, float high) { return smaller(larger(x, low), high); }

// PARTS threads join THREADS / PARTS numbers each, and every thread joins what they have.
FUNCTION float group_reduce(float value, bool sums, SHARED float* shared, int lane) {
  shared[lane] = value;
  BARRIER;
  if (lane < PARTS) {
    float part = shared[lane];
    for (int i = lane + PARTS; i < THREADS; i += PARTS)
      part = sums ? part + shared[i] : larger(part, shared[i]);
    shared[THREADS + lane] = part;
  }
  BARRIER;
  float whole = shared[THREADS];
  for (int i = 1; i < PARTS; ++i)
    whole = sums ? whole + shared[THREADS + i] : larger(whole, shared[THREADS + i]);
  BARRIER;
  return whole;
}

FUNCTION Totals group_sums(Totals sums, SHARED float* shared, int lane) {
  sums.first.value = group_reduce(sums.first.value, true, shared, lane);
  sums.second.value = group_reduce(sums.second.value, true, shared, lane);
  sums.third.value = group_reduce(sums.third.value, true, shared, lane);
  return sums;
}

// e^x − 1 to about a unit in the last place up to 88: MLX's own on Metal is off by thousands.
FUNCTION float accurate_expm1(float x) {
  if (x < -30.0f) return -1.0f;
  float power = rint(x * 1.44269504f);
  float f = (x - power * 0.693145752f) - power * 1.42860677e-6f;  // log 2 in two parts
  float series = 1.0f / 720.0f + f * (1.0f / 5040.0f);
  series = 1.0f / 24.0f + f * (1.0f / 120.0f + f * series);
  series = f + f * f * (0.5f + f * (1.0f / 6.0f + f * series));
  float scale = ldexp(1.0f, int(power));
  return power == 0.0f ? series : scale * series + (scale - 1.0f);
}

FUNCTION float accurate_log1p(float x) {
  float more = 1.0f + x;
  return more == 1.0f ? x : x * (log(more) / (more - 1.0f));
}

// r = log π_T − log π_S, hugely negative outside either support.
FUNCTION float log_ratio(float student_logprob, float teacher_logprob) {
  bool inside = student_logprob >= SUPPORT_FLOOR && teacher_logprob >= TEACHER_FLOOR;
  return inside ? teacher_logprob - student_logprob : -HOLE;
}

// x = βr − c, where e^−200 is 0.
FUNCTION float exponent_of(float ratio, float weight, float guess) {
  return larger(ratio * weight - guess, -200.0f);
}

// π_S·(e^x − 1) by (1 + h)² − 1 = h·(h + 2), each factor with its share of π_S.
FUNCTION float change_of(float root, float exponent) {
  float part = root * accurate_expm1(0.5f * exponent);
  return part * (part + 2.0f * root);
}

// One weight that was tried: √KL less the aim, A and A' there.
struct Point {
  float weight, excess, level, slope;
};

FUNCTION float tangent(Point at, float weight) {
  return at.level + at.slope * (weight - at.weight);
}

// A monotone cubic through √KL at β = 0 and 1, as ops/trust_region.py has it.
FUNCTION float first_weight(float low, float high, float aim, float low_spread, float high_spread) {
  float height = larger(high - low, TINY);
  float low_slope = smaller(sqrt(2.0f / larger(low_spread, TINY)), 3.0f / height);
  float high_slope = smaller(2.0f * high / larger(high_spread, TINY), 3.0f / height);
  float t = within((aim - low) / height, 0.0f, 1.0f);
  float rise = low_slope * t * (1.0f - t) * (1.0f - t) - high_slope * t * t * (1.0f - t);
  return within(t * t * (3.0f - 2.0f * t) + height * rise, 1e-12f, 1.0f - 1e-4f);
}

// Chandrupatla's next weight from the newest point, the other end and the one before them.
FUNCTION float next_weight(Point a, Point b, Point c) {
  float place = (a.weight - b.weight) / (c.weight - b.weight);
  float height = (a.excess - b.excess) / (c.excess - b.excess);
  float share = 0.5f;
  if (height * height < place && (1.0f - height) * (1.0f - height) < 1.0f - place) {
    share = a.excess / (b.excess - a.excess) * c.excess / (b.excess - c.excess) +
            (c.weight - a.weight) / (b.weight - a.weight) * a.excess / (c.excess - a.excess) *
                b.excess / (c.excess - b.excess);
  }
  return a.weight + within(share, 1e-4f, 1.0f - 1e-4f) * (b.weight - a.weight);
}
