//! Regions that go while a peer writes to them, or reads from them.

use secure_rdma_rdma::SendOperation;
use secure_rdma_roce::{Extension, Opcode, PacketKey, Reth};

use super::limits::syndromes;
use super::pair::{ALL, Pair, bytes_of, remote};

const FIRST: u32 = 0xFF_FFFE;

#[test]
fn a_read_that_is_replayed_after_its_region_has_gone_is_refused() {
    let mut pair = Pair::new();
    let region = pair.sides[0].region(8192, ALL);
    let rkey = PacketKey::new(region.rkey().expose());
    let reth = Extension::Reth(Reth { virtual_address: region.address(), rkey, dma_length: 2500 });
    pair.forge(0, Opcode::ReadRequest, FIRST, reth, &[]);
    assert_eq!(pair.take(0).len(), 3);
    pair.sides[0].engine.deregister(region.lkey());
    pair.forge(0, Opcode::ReadRequest, FIRST, reth, &[]);
    assert_eq!(syndromes(&pair.take(0)), [(FIRST, 0x62)]);
    // The peer may have read it long ago, and this be a late copy: the connection goes on.
    let inbox = pair.sides[0].region(64, ALL);
    pair.receive(0, &inbox, 0, 64);
    pair.forge(0, Opcode::SendOnly, (FIRST + 3) & 0xFF_FFFF, Extension::None, b"next");
    assert_eq!(syndromes(&pair.take(0)), [((FIRST + 3) & 0xFF_FFFF, 0x1F)]);
    assert_eq!(pair.sides[0].statuses(), [(1, 0)]);
    // One that was never answered is refused for good.
    pair.forge(0, Opcode::ReadRequest, (FIRST + 4) & 0xFF_FFFF, reth, &[]);
    assert_eq!(syndromes(&pair.take(0)), [((FIRST + 4) & 0xFF_FFFF, 0x62)]);
    pair.forge(0, Opcode::ReadRequest, FIRST, reth, &[]);
    assert!(pair.take(0).is_empty());
}

#[test]
fn a_peer_that_waits_for_a_response_that_cannot_be_repeated_is_told() {
    let mut pair = Pair::new();
    let far = pair.sides[1].region(8192, ALL);
    let local = pair.sides[0].region(8192, ALL);
    pair.send(0, SendOperation::Read { remote: remote(&far, 0) }, &[(&local, 0, 2500)]);
    // The responses are lost, and before they are asked for again the region goes.
    let request = pair.take(0);
    assert_eq!(request.len(), 1);
    let reth = Extension::Reth(Reth {
        virtual_address: far.address(),
        rkey: PacketKey::new(far.rkey().expose()),
        dma_length: 2500,
    });
    pair.forge(1, Opcode::ReadRequest, request[0].bth.psn.expose(), reth, &[]);
    assert_eq!(pair.take(1).len(), 3);
    pair.sides[1].engine.deregister(far.lkey());
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(1, 10)], "a remote access error, and not one of the path");
}

#[test]
fn a_region_that_goes_in_the_middle_of_a_write_is_not_written_any_more() {
    let mut pair = Pair::new();
    let region = pair.sides[0].region(8192, ALL);
    let rkey = PacketKey::new(region.rkey().expose());
    let reth = Extension::Reth(Reth { virtual_address: region.address(), rkey, dma_length: 3072 });
    pair.forge(0, Opcode::WriteFirst, FIRST, reth, &[1; 1024]);
    pair.sides[0].engine.deregister(region.lkey());
    pair.forge(0, Opcode::WriteMiddle, FIRST + 1, Extension::None, &[2; 1024]);
    assert_eq!(syndromes(&pair.take(0)).last(), Some(&(FIRST + 1, 0x62)));
    assert_eq!(bytes_of(&region)[1024..], [0; 7168]);
}
