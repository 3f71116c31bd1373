// What the two AVX-512 units of float convolutions share: everything but the product. Included inside their Vec.
  using F = __m512;
  using M = __mmask16;
  static constexpr int n = 16;

  DETENT_VEC M first(int count) { return static_cast<M>(0xffffu >> (16 - count)); }
  DETENT_VEC F zero() { return _mm512_setzero_ps(); }
  DETENT_VEC F set(float v) { return _mm512_set1_ps(v); }
  DETENT_VEC F load(const float* p) { return _mm512_loadu_ps(p); }
  DETENT_VEC F load(const float* p, int count) { return _mm512_maskz_loadu_ps(first(count), p); }
  DETENT_VEC void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  DETENT_VEC void store(float* p, F v, int count) { _mm512_mask_storeu_ps(p, first(count), v); }
  DETENT_VEC void stream(float* p, F v) { _mm512_stream_ps(p, v); }
  DETENT_VEC F add(F a, F b) { return _mm512_add_ps(a, b); }
  DETENT_VEC F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  DETENT_VEC F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  DETENT_VEC F div(F a, F b) { return _mm512_div_ps(a, b); }
  DETENT_VEC F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  DETENT_VEC F min(F a, F b) { return _mm512_min_ps(a, b); }
  DETENT_VEC F max(F a, F b) { return _mm512_max_ps(a, b); }
  DETENT_VEC F rint(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  DETENT_VEC M le(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
  DETENT_VEC M is_nan(F a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
  DETENT_VEC M either(M a, M b) { return static_cast<M>(a | b); }
  DETENT_VEC M both(M a, M b) { return static_cast<M>(a & b); }
  DETENT_VEC F select(M m, F yes, F no) { return _mm512_mask_blend_ps(m, no, yes); }
  DETENT_VEC void store_bytes(uint8_t* p, F v, int count) { _mm_mask_storeu_epi8(p, first(count), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))); }
  DETENT_VEC F load_bytes(const uint8_t* p, int32_t minus, int count) {
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(count), p)), _mm512_set1_epi32(minus)));
  }

  // round_to_bfloat of core/math/half.h: the upper halves are the result.
  DETENT_VEC __m512i bfloat(F v) {
    const __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    return _mm512_mask_or_epi32(rounded, is_nan(v), bits, _mm512_set1_epi32(0x400000));
  }
  DETENT_VEC F round_bfloat(F v) { return _mm512_castsi512_ps(_mm512_and_si512(bfloat(v), _mm512_set1_epi32(static_cast<int>(0xffff0000u)))); }
  // stream: past the cache, a whole vector.
  DETENT_VEC void store_bfloat(uint16_t* p, F v, int count, bool stream) {
    const __m256i words = _mm512_cvtepi32_epi16(_mm512_srli_epi32(bfloat(v), 16));
    if (stream) {
      _mm256_stream_si256(reinterpret_cast<__m256i*>(p), words);
    } else {
      _mm256_mask_storeu_epi16(p, first(count), words);
    }
  }

  // Writes N floats, or a few more.
  template <int N>
  DETENT_VEC void copy_some(float* dst, const float* src) {
    if constexpr (N == 4) {
      _mm_storeu_ps(dst, _mm_loadu_ps(src));
    } else if constexpr (N <= 8) {
      _mm256_storeu_ps(dst, _mm256_maskz_loadu_ps(static_cast<__mmask8>(0xffu >> (8 - N)), src));
    } else {
      _mm512_storeu_ps(dst, load(src, N < 16 ? N : 16));
    }
  }
  DETENT_VEC void prefetch(const char* p) { _mm_prefetch(p, _MM_HINT_T0); }
  DETENT_VEC void prefetch_far(const char* p) { _mm_prefetch(p, _MM_HINT_T1); }

  DETENT_VEC void transpose(F (&m)[16]) {
    F t[16];
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(m[i], m[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(m[i], m[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      m[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
      m[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
      m[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      m[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    // m[4b + q], 128-bit lane l: rows 4b..4b+3 of column 4l + q. What is left is a transpose of 4x4 lanes.
    for (int q = 0; q < 4; ++q) {
      const F a = _mm512_shuffle_f32x4(m[q], m[4 + q], 0x88), b = _mm512_shuffle_f32x4(m[q], m[4 + q], 0xdd);
      const F c = _mm512_shuffle_f32x4(m[8 + q], m[12 + q], 0x88), d = _mm512_shuffle_f32x4(m[8 + q], m[12 + q], 0xdd);
      t[q] = _mm512_shuffle_f32x4(a, c, 0x88);
      t[8 + q] = _mm512_shuffle_f32x4(a, c, 0xdd);
      t[4 + q] = _mm512_shuffle_f32x4(b, d, 0x88);
      t[12 + q] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
    for (int i = 0; i < 16; ++i) m[i] = t[i];
  }
