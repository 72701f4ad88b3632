//! Random bytes for applications and the sentry: ChaCha20 (RFC 8439) keyed by the host, rekeyed after every request so that
//! a later look at memory does not reveal what was given out (fast key erasure), and reseeded from the host now and then.

use crate::{arch, sync::SpinLock};

/// Bytes given out after which host entropy is mixed in again.
const RESEED: u64 = 1 << 20;

struct Generator {
    key: [u32; 8],
    given: u64,
}

static GENERATOR: SpinLock<Generator> = SpinLock::new(Generator { key: [0; 8], given: 0 });

/// Takes the host's seed of the boot parameters.
pub fn init(seed: &[u8; 32]) {
    GENERATOR.lock().mix(seed);
}

/// Mixes more entropy in: after a restore or a clone, whose copies must not give the same bytes.
pub fn reseed() {
    let mut fresh = [0; 32];
    if arch::host::entropy(&mut fresh).is_ok() {
        GENERATOR.lock().mix(&fresh);
    }
}

/// Fills the buffer. Takes a request at a time: callers bound its size.
pub fn fill(buffer: &mut [u8]) {
    let due = {
        let mut generator = GENERATOR.lock();
        generator.given += buffer.len() as u64;
        let due = generator.given >= RESEED;
        if due {
            generator.given = 0;
        }
        due
    };
    if due {
        reseed();
    }
    let key = {
        let mut generator = GENERATOR.lock();
        // The TSC keeps two requests apart even if the seed was poor.
        generator.key[7] ^= arch::rdtsc() as u32;
        let block = chacha(&generator.key, 0);
        let (next, ours) = block.split_at(8);
        generator.key.copy_from_slice(next);
        let mut key = [0; 8];
        key.copy_from_slice(ours);
        key
    };
    for (counter, chunk) in buffer.chunks_mut(64).enumerate() {
        let block = chacha(&key, counter as u64);
        for (bytes, word) in chunk.chunks_mut(4).zip(block) {
            bytes.copy_from_slice(&word.to_le_bytes()[..bytes.len()]);
        }
    }
}

pub fn next_u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

impl Generator {
    fn mix(&mut self, seed: &[u8; 32]) {
        for (word, bytes) in self.key.iter_mut().zip(seed.chunks_exact(4)) {
            *word ^= u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let block = chacha(&self.key, 0);
        self.key.copy_from_slice(&block[..8]);
    }
}

/// One ChaCha20 block with a zero nonce.
fn chacha(key: &[u32; 8], counter: u64) -> [u32; 16] {
    let mut input = [0u32; 16];
    input[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
    input[4..12].copy_from_slice(key);
    input[12] = counter as u32;
    input[13] = (counter >> 32) as u32;
    let mut state = input;
    fn quarter(s: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
        s[a] = s[a].wrapping_add(s[b]);
        s[d] = (s[d] ^ s[a]).rotate_left(16);
        s[c] = s[c].wrapping_add(s[d]);
        s[b] = (s[b] ^ s[c]).rotate_left(12);
        s[a] = s[a].wrapping_add(s[b]);
        s[d] = (s[d] ^ s[a]).rotate_left(8);
        s[c] = s[c].wrapping_add(s[d]);
        s[b] = (s[b] ^ s[c]).rotate_left(7);
    }
    for _ in 0..10 {
        for i in 0..4 {
            quarter(&mut state, i, 4 + i, 8 + i, 12 + i);
        }
        for i in 0..4 {
            quarter(&mut state, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4);
        }
    }
    for (word, start) in state.iter_mut().zip(input) {
        *word = word.wrapping_add(start);
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chacha_matches_the_published_zero_vector() {
        // RFC 7539 appendix A.1, test vector 1: zero key, nonce and counter.
        let block = chacha(&[0; 8], 0);
        assert_eq!(block[0], 0xade0_b876);
        assert_eq!(block[15], 0x8665_eeb2);
    }

    #[test]
    fn requests_differ_and_odd_lengths_are_filled() {
        let (mut a, mut b) = ([0u8; 37], [0u8; 37]);
        fill(&mut a);
        fill(&mut b);
        assert_ne!(a, b);
        assert!(a[32..].iter().any(|&x| x != 0));
    }
}
