// What the two AVX-512 units share: everything but the multiplication. Included inside their Vec.
  using I = __m512i;
  static constexpr int n = 16;

  DETENT_VEC I zero() { return _mm512_setzero_si512(); }
  DETENT_VEC I add(I a, I b) { return _mm512_add_epi32(a, b); }
  DETENT_VEC int32_t first(I a) { return _mm512_cvtsi512_si32(a); }
  DETENT_VEC __mmask16 lanes(int64_t count) { return count >= 16 ? __mmask16(0xffff) : static_cast<__mmask16>(0xffffu >> (16 - (count > 0 ? count : 0))); }
  DETENT_VEC I load(const int32_t* p, int64_t count) { return _mm512_maskz_loadu_epi32(lanes(count), p); }

  using F = __m512;
  using M = __mmask16;
  DETENT_VEC F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  DETENT_VEC F set(float v) { return _mm512_set1_ps(v); }
  DETENT_VEC F load(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(lanes(count), p); }
  DETENT_VEC F add(F a, F b) { return _mm512_add_ps(a, b); }
  DETENT_VEC F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  DETENT_VEC F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  DETENT_VEC F rint(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  DETENT_VEC M le(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  DETENT_VEC M both(M a, M b) { return static_cast<M>(a & b); }
  DETENT_VEC F select(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
  // Masked stores of bytes are slow.
  DETENT_VEC void store_bytes(int8_t* p, F v, int64_t count) {
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v));
    if (count >= 16) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
    } else if (count > 0) {
      _mm_mask_storeu_epi8(p, lanes(count), bytes);
    }
  }

  // Clamping before rounding is the same, as the bounds are integers, and the lower one is left to the saturation of the packs. Four vectors become 64 bytes. Masked stores are slow.
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
    if (channels < 16 * NV || NV == 3) {
      _mm512_mask_storeu_epi8(y, ~uint64_t{0} >> (64 - (channels < 16 * NV ? channels : 16 * NV)), ordered);
    } else if (NV == 1) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(y), _mm512_castsi512_si128(ordered));
    } else if (NV == 2) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), _mm512_castsi512_si256(ordered));
    } else {
      _mm512_storeu_si512(y, ordered);
    }
  }
