//! The table of regions: which bytes a key opens, and that no key opens more.

use secure_rdma_rdma::OsEntropy;

use super::*;

pub(super) const ALL: Access = REMOTE.union(Access::LOCAL_WRITE).union(Access::MEMORY_WINDOW_BIND);
pub(super) const READ: Access = Access::REMOTE_READ;
pub(super) const WRITE: Access = Access::REMOTE_WRITE;

pub(super) fn qpn(number: u32) -> Qpn {
    Qpn::new(number).unwrap()
}

pub(super) fn regions() -> Regions {
    Regions::new(Arc::new(OsEntropy)).unwrap()
}

fn memory(length: usize) -> Arc<Memory> {
    Arc::new(Memory::allocate(length).unwrap())
}

/// A region of `length` bytes with `access`.
pub(super) fn region(regions: &mut Regions, length: usize, access: Access) -> Keys {
    regions.register(memory(length), access).unwrap()
}

/// A window bound on queue pair 0x100 to `length` bytes from `offset`.
pub(super) fn bound(regions: &mut Regions, keys: Keys, offset: usize, length: usize) -> (WindowId, RKey) {
    let window = regions.create_window();
    let rkey = regions.next_key(window).unwrap();
    regions.bind(qpn(0x100), window, rkey, keys.lkey, offset, length, REMOTE).unwrap();
    (window, rkey)
}

pub(super) fn ask(regions: &Regions, rkey: RKey, address: u64, length: u64) -> Result<usize, Refusal> {
    regions.remote(qpn(0x100), rkey, address, length, READ).map(|(_, offset)| offset)
}

#[test]
fn bounds_of_64_bytes_are_exact() {
    let mut regions = regions();
    let keys = region(&mut regions, 64, ALL);
    let large = region(&mut regions, 192, ALL);
    let (_, window) = bound(&mut regions, large, 64, 64);
    let mut allowed = 0;
    for (rkey, first, offset) in [(keys.rkey, keys.address, 0), (window, large.address.wrapping_add(64), 64)]
    {
        for start in -16_i64..=80 {
            for length in 1..=112 {
                let answer = ask(&regions, rkey, first.wrapping_add_signed(start), length);
                let inside = start >= 0 && start + length.cast_signed() <= 64;
                let expected = inside.then(|| offset + usize::try_from(start).unwrap());
                assert_eq!(answer.ok(), expected, "{length} bytes at {start}");
                assert!(answer.is_ok() || answer == Err(Refusal::Bounds));
                allowed += u32::from(inside);
            }
        }
    }
    assert_eq!(allowed, 2 * 64 * 65 / 2);
}

#[test]
fn bounds_agree_with_integers_that_cannot_overflow() {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut table = regions();
    let keys = region(&mut table, 64, ALL);
    let key = keys.rkey.expose();
    let (mut inside, mut outside) = (0, 0);
    for _ in 0..1_000_000 {
        // Values near the corners of the range meet each other often.
        let corners = [0, u64::MAX, 1 << 63, 1 << 32, random(), random() >> (random() % 64)];
        let mut pick = |near: &[u64]| {
            let of = usize::try_from(random() % (near.len() + corners.len()) as u64).unwrap();
            let corner = near.iter().chain(&corners).nth(of).copied().unwrap();
            corner.wrapping_add(random() % 9).wrapping_sub(4)
        };
        let length = pick(&[64]);
        let first = pick(&[u64::MAX - 64]).min(u64::MAX - length);
        let end = first.wrapping_add(length);
        let address = pick(&[first, end]);
        let asked = pick(&[length, end.wrapping_sub(address), address.wrapping_neg()]);
        let opening = table.openings.get_mut(&key).unwrap();
        (opening.first, opening.length) = (first, length);
        let model = i128::from(address) >= i128::from(first)
            && i128::from(address) + i128::from(asked) <= i128::from(first) + i128::from(length);
        let answer = ask(&table, keys.rkey, address, asked);
        let expected =
            if model { Ok(usize::try_from(address - first).unwrap()) } else { Err(Refusal::Bounds) };
        assert_eq!(answer, expected, "{asked:#x} bytes at {address:#x} of {length:#x} at {first:#x}");
        *(if model { &mut inside } else { &mut outside }) += 1;
    }
    assert!(inside > 100_000 && outside > 100_000, "{inside} inside, {outside} outside");
}

#[test]
fn each_right_opens_itself_alone() {
    let mut regions = regions();
    for granted in 0..8_u32 {
        let rights = Access::from_bits_truncate(granted << 1);
        let local = if granted & 5 == 0 { Access::empty() } else { Access::LOCAL_WRITE };
        let keys = region(&mut regions, 64, rights | local);
        for needed in [READ, WRITE, Access::REMOTE_ATOMIC] {
            let answer = regions.remote(qpn(0x100), keys.rkey, keys.address, 8, needed);
            let expected = match () {
                () if rights.contains(needed) => Ok(0),
                () if rights.is_empty() => Err(Refusal::UnknownKey),
                () => Err(Refusal::Rights),
            };
            assert_eq!(answer.map(|(_, offset)| offset), expected, "{rights:?} for {needed:?}");
        }
    }
}

#[test]
fn a_key_for_local_work_opens_nothing_to_the_peer() {
    let mut regions = regions();
    let keys = region(&mut regions, 64, ALL);
    assert_eq!(ask(&regions, RKey::new(keys.lkey.0), keys.address, 8), Err(Refusal::UnknownKey));
    assert_eq!(ask(&regions, RKey::new(0), keys.address, 8), Err(Refusal::UnknownKey));
    assert!(regions.local(LKey(keys.rkey.expose())).is_none());
    assert_eq!(regions.local(keys.lkey), Some(ALL));
}

#[test]
fn memory_that_the_peer_may_change_and_the_device_may_not_is_refused() {
    let mut regions = regions();
    for access in [WRITE, Access::REMOTE_ATOMIC, READ | WRITE] {
        let error = regions.register(memory(64), access).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
    }
    assert!(regions.register(memory(64), READ).is_ok());
}

#[test]
fn addresses_are_random_pages_and_never_wrap() {
    /// Gives the eight bytes of each number, the last for ever.
    struct Numbers(std::sync::Mutex<Vec<u64>>);
    impl Entropy for Numbers {
        fn fill(&self, bytes: &mut [u8]) -> Result<()> {
            let mut numbers = self.0.lock().unwrap();
            let number = if numbers.len() > 1 { numbers.remove(0) } else { numbers[0] };
            bytes.iter_mut().zip(number.to_le_bytes().iter().cycle()).for_each(|(to, from)| *to = *from);
            Ok(())
        }
    }
    let mut table = regions();
    table.entropy =
        Arc::new(Numbers(std::sync::Mutex::new(vec![u64::MAX, u64::MAX - 4096, 0x1234_5678_9ABC])));
    assert_eq!(region(&mut table, 8193, ALL).address, 0x1234_5678_9000, "two would have wrapped");

    let mut table = regions();
    let addresses: Vec<u64> = (0..256).map(|_| region(&mut table, 64, ALL).address).collect();
    assert!(addresses.iter().all(|address| address % 4096 == 0));
    let any = addresses.iter().fold(0, |any, address| any | address);
    let all = addresses.iter().fold(u64::MAX, |all, address| all & address);
    assert_eq!((any, all), (!0xFFF, 0), "each of the upper 52 bits is both");
}

#[test]
fn an_ended_region_lets_go_of_its_memory() {
    let mut table = regions();
    let memory = memory(64);
    let keys = table.register(Arc::clone(&memory), ALL).unwrap();
    bound(&mut table, keys, 0, 64);
    assert_eq!(Arc::strong_count(&memory), 4);
    table.deregister(keys.lkey);
    assert_eq!(Arc::strong_count(&memory), 1);
}

#[test]
fn no_two_keys_are_equal_and_none_is_0() {
    let mut table = regions();
    let mut drawn = std::collections::HashSet::from([0]);
    for _ in 0..1000 {
        let keys = region(&mut table, 64, READ);
        assert!(drawn.insert(keys.lkey.0) && drawn.insert(keys.rkey.expose()));
        let window = table.create_window();
        assert!(drawn.insert(table.next_key(window).unwrap().expose()));
    }
}
