// What the two AVX-512 units share: everything but the multiplication. Included inside their Vec.
  using I = __m512i;
  static constexpr int n = 16;

  DETENT_VEC I zero() { return _mm512_setzero_si512(); }
  DETENT_VEC I add(I a, I b) { return _mm512_add_epi32(a, b); }
  DETENT_VEC int32_t first(I a) { return _mm512_cvtsi512_si32(a); }
  DETENT_VEC void requantize(I acc, const IntegerTarget& e, int64_t k, uint8_t* y, int count) {
    const __mmask16 m = static_cast<__mmask16>(0xffffu >> (16 - count));
    const I sum = _mm512_add_epi32(acc, _mm512_maskz_loadu_epi32(m, e.offset + k));
    const __m512 t = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_maskz_loadu_ps(m, e.multiplier + k));
    const __m512 q = _mm512_add_ps(_mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), _mm512_set1_ps(e.zero_point));
    const __m512 c = _mm512_min_ps(_mm512_set1_ps(e.hi), _mm512_max_ps(_mm512_set1_ps(e.lo), q));
    _mm_mask_storeu_epi8(y, m, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(c)));
  }
