// What the two AVX-512 units share: everything but the multiplication. Included inside their Vec.
  using I = __m512i;
  static constexpr int n = 16;

  DETENT_VEC I zero() { return _mm512_setzero_si512(); }
  DETENT_VEC I add(I a, I b) { return _mm512_add_epi32(a, b); }
  DETENT_VEC int32_t first(I a) { return _mm512_cvtsi512_si32(a); }
  DETENT_VEC __mmask16 lanes(int64_t count) { return count >= 16 ? __mmask16(0xffff) : static_cast<__mmask16>(0xffffu >> (16 - (count > 0 ? count : 0))); }
  DETENT_VEC I load(const int32_t* p, int64_t count) { return _mm512_maskz_loadu_epi32(lanes(count), p); }

  // Clamping before rounding is the same, as the bounds are integers, and the lower one is left to the saturation of the packs. Four vectors become 64 bytes.
  template <int NV>
  DETENT_VEC void store(const I (&acc)[NV], const IntegerTarget& e, int64_t k, uint8_t* y, int64_t channels) {
    const __m512 most = _mm512_set1_ps(e.hi - e.zero_point);
    I q[4] = {zero(), zero(), zero(), zero()};
    for (int j = 0; j < NV; ++j) {
      const __m512 m = _mm512_maskz_loadu_ps(lanes(channels - 16 * j), e.multiplier + k + 16 * j);
      q[j] = _mm512_cvtps_epi32(_mm512_min_ps(most, _mm512_mul_ps(_mm512_cvtepi32_ps(acc[j]), m)));
    }
    const I z = _mm512_set1_epi16(static_cast<int16_t>(e.zero_point));
    const I low = _mm512_adds_epi16(_mm512_packs_epi32(q[0], q[1]), z), high = _mm512_adds_epi16(_mm512_packs_epi32(q[2], q[3]), z);
    const I bytes = _mm512_max_epu8(_mm512_packus_epi16(low, high), _mm512_set1_epi8(static_cast<char>(static_cast<uint8_t>(e.lo))));
    const I ordered = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), bytes);
    _mm512_mask_storeu_epi8(y, ~uint64_t{0} >> (64 - (channels < 16 * NV ? channels : 16 * NV)), ordered);
  }
