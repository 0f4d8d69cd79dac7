// One row of the solve, by one group of threads: ops/trust_region.py in the same steps. Given are
// row, lane (the thread's number) and shared[THREADS + PARTS], student, roots and teacher [R, V],
// budget, ε of all rows or of each, and totals [R], the sums of the rows' masses. Written are
// numbers, of each row β, KL(μ_β ‖ π_S) and TV(μ_β, π_S), and probs [R, V], μ_β.
const int vocab = student_shape[1];
const size_t begin = size_t(row) * size_t(vocab);
const float limit = budget[budget_shape[0] > 1 ? row : 0], total = totals[row];
const float aim = sqrt(AIM * larger(limit, 0.0f));

// The limit β → 0+: the student restricted to the teacher's support.
Totals sums = {};
for (int v = lane; v < vocab; v += THREADS) {
  float root = roots[begin + v], ratio = log_ratio(student[begin + v], teacher[begin + v]);
  float mass = root * root;
  if (ratio == -HOLE) {
    sums.first = plus(sums.first, mass);
  } else {
    sums.second = plus(sums.second, mass * ratio);
    sums.third = plus(sums.third, mass * ratio * ratio);
  }
}
sums = group_sums(sums, shared, lane);
const float holes = within(sums.first.value / total, 0.0f, 1.0f);
const float kept = total * larger(1.0f - holes, TINY);
const float mean_at_zero = sums.second.value / kept;
const float low_spread = sums.third.value / kept - mean_at_zero * mean_at_zero;
const float level_at_zero = accurate_log1p(-holes);
const float low_root = sqrt(-level_at_zero);

const bool searched = limit > 0.0f && -level_at_zero <= limit;
Point newest = {0.0f, low_root - aim, level_at_zero, mean_at_zero};
Point other = newest, before = newest;
float weight = searched ? 1.0f : 0.0f, guess = 0.0f, norm = 1.0f, kl = 0.0f;
for (int trial = 1; searched; ++trial) {
  // Tangents of the convex A, and the largest exponent, bound it from below.
  float largest = -HOLE;
  for (int v = lane; v < vocab; v += THREADS) {
    float ratio = log_ratio(student[begin + v], teacher[begin + v]);
    largest = larger(largest, student[begin + v] + weight * ratio);
  }
  guess = larger(tangent(newest, weight), tangent(other, weight));
  guess = larger(group_reduce(largest, false, shared, lane), guess);
  sums = {};
  for (int v = lane; v < vocab; v += THREADS) {
    float root = roots[begin + v];
    float exponent =
        exponent_of(log_ratio(student[begin + v], teacher[begin + v]), weight, guess);
    float change = change_of(root, exponent), pull = (change + root * root) * exponent;
    sums.first = plus(sums.first, change);
    sums.second = plus(sums.second, pull - change);
    sums.third = plus(sums.third, pull * exponent);
  }
  sums = group_sums(sums, shared, lane);
  float gain = sums.first.value / total, stable = sums.second.value / total;
  norm = 1.0f + gain;
  float rise = accurate_log1p(gain), mean = (stable + gain) / norm;
  kl = larger(stable / norm + (gain / norm - rise), 0.0f);
  bool enough = kl >= ENOUGH * limit || weight == 1.0f;
  if ((kl <= limit && enough) || trial == TRIALS) break;

  Point point = {weight, sqrt(kl) - aim, guess + rise, (kl + guess + rise) / weight};
  bool same = (point.excess > 0.0f) == (newest.excess > 0.0f);
  before = same ? newest : other;
  other = same ? other : newest;
  newest = point;
  if (trial == 1) {
    float high_spread = sums.third.value / (total * norm) - mean * mean;
    weight = first_weight(low_root, sqrt(kl), aim, low_spread, high_spread);
  } else if (trial + 1 < TRIALS) {
    weight = next_weight(newest, other, before);
  } else {
    weight = smaller(newest.weight, other.weight);
  }
}

Total apart = {};
for (int v = lane; v < vocab; v += THREADS) {
  float root = roots[begin + v], mass = root * root;
  float exponent = exponent_of(log_ratio(student[begin + v], teacher[begin + v]), weight, guess);
  float prob = (change_of(root, exponent) + mass) / (total * norm);
  probs[begin + v] = prob;
  apart = plus(apart, fabs(prob - mass / total));
}
const float distance = 0.5f * group_reduce(apart.value, true, shared, lane);
if (lane == 0) {
  numbers[3 * row] = weight;
  numbers[3 * row + 1] = kl;
  numbers[3 * row + 2] = distance;
}
