//! Comparisons of several numbers at once.

/// Bit n: half n of two words, counted from the low one of `a`, is `tag`.
#[inline]
pub fn equal_halves(a: u64, b: u64, tag: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_castsi128_ps, _mm_cmpeq_epi32, _mm_movemask_ps, _mm_set_epi64x, _mm_set1_epi32};
        // SAFETY: SSE2 is part of x86_64, and nothing here has an address.
        unsafe {
            let equal = _mm_cmpeq_epi32(_mm_set_epi64x(b as i64, a as i64), _mm_set1_epi32(tag as i32));
            _mm_movemask_ps(_mm_castsi128_ps(equal)) as u32
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    [a, a >> 32, b, b >> 32].iter().enumerate().fold(0, |bits, (n, half)| bits | u32::from(*half as u32 == tag) << n)
}

#[cfg(test)]
mod tests {
    use super::equal_halves;

    #[test]
    fn each_half_has_its_bit() {
        let words = |tags: [u32; 4]| {
            let word = |n: usize| u64::from(tags[n]) | u64::from(tags[n + 1]) << 32;
            (word(0), word(2))
        };
        for bits in 0..16 {
            let (a, b) = words(std::array::from_fn(|n| if bits >> n & 1 == 1 { 0x8000_0001 } else { n as u32 }));
            assert_eq!(equal_halves(a, b, 0x8000_0001), bits);
        }
    }
}
