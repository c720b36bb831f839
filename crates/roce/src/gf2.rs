//! Polynomials over GF(2) modulo CRC-32's: what lets a part of a packet be exchanged in its ICRC without reading the rest.
//!
//! A register of the CRC is such a polynomial, lowest bit first: bit 31 is the coefficient of x^0. To run `n` bytes
//! of zeros through the CRC is to multiply by x^8n, and x has an inverse, so that this can be undone.

/// The CRC-32 of Ethernet and zlib: x^32 + x^26 + … + x + 1, without its x^32.
const POLYNOMIAL: u32 = 0xEDB8_8320;

/// x^0.
pub(crate) const ONE: u32 = 1 << 31;

/// `value`·x.
const fn times_x(value: u32) -> u32 {
    (value >> 1) ^ if value & 1 != 0 { POLYNOMIAL } else { 0 }
}

/// `value`·x^-1.
const fn over_x(value: u32) -> u32 {
    if value & ONE != 0 { (value ^ POLYNOMIAL) << 1 | 1 } else { value << 1 }
}

/// `a`·`b`.
#[inline]
pub(crate) const fn multiply(mut a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 0;
    while bit < 32 {
        // Masks, not branches: the bits are those of a checksum, which no predictor guesses.
        product ^= b & (a >> 31).wrapping_neg();
        a <<= 1;
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
        bit += 1;
    }
    product
}

/// x^8`count`: what `count` bytes of zeros multiply by.
pub(crate) const fn x_to_bytes(count: usize) -> u32 {
    let (mut value, mut bit) = (ONE, 0);
    while bit < 8 * count {
        value = times_x(value);
        bit += 1;
    }
    value
}

/// x^-8`count`: what takes `count` bytes of zeros back.
pub(crate) const fn x_to_minus_bytes(count: usize) -> u32 {
    let (mut value, mut bit) = (ONE, 0);
    while bit < 8 * count {
        value = over_x(value);
        bit += 1;
    }
    value
}

/// `base`^`exponent`.
pub(crate) const fn power(mut base: u32, mut exponent: usize) -> u32 {
    let mut value = ONE;
    while exponent > 0 {
        if exponent & 1 != 0 {
            value = multiply(value, base);
        }
        base = multiply(base, base);
        exponent >>= 1;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x_has_an_inverse() {
        for value in [1, 2, ONE, POLYNOMIAL, u32::MAX, 0x1234_5678] {
            assert_eq!(over_x(times_x(value)), value);
            assert_eq!(times_x(over_x(value)), value);
            assert_eq!(multiply(value, ONE), value);
            assert_eq!(multiply(value, x_to_bytes(1)), (0..8).fold(value, |v, _| times_x(v)));
        }
        for count in [0, 1, 2, 3, 4, 5, 63, 4200] {
            assert_eq!(multiply(x_to_bytes(count), x_to_minus_bytes(count)), ONE);
            assert_eq!(power(x_to_bytes(1), count), x_to_bytes(count));
        }
    }

    /// Against a CRC crate's own idea of what zeros do.
    #[test]
    fn zeros_multiply() {
        for count in [0_usize, 1, 4, 100, 4096] {
            let register = 0x89AB_CDEF_u32;
            let mut crc = crc32fast::Hasher::new_with_initial(!register);
            crc.update(&vec![0; count]);
            assert_eq!(!crc.finalize(), multiply(register, x_to_bytes(count)), "{count}");
        }
    }
}
