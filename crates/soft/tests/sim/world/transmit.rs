//! Packets from an engine: what it sends is compared with the model, and goes to the network.

use std::net::SocketAddr;

use secure_rdma_roce::Packet;
use secure_rdma_soft::engine::Transmit;

use super::super::endpoint::Stage;
use super::super::network::{Datagram, Origin};
use super::{Checked, World};

impl World {
    /// Sends everything that the engine has to send.
    pub fn flush(&mut self, host: usize) -> Checked {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut any = false;
        for turn in 0.. {
            buffer.clear();
            let segments = self.hosts[host].segments;
            let now = self.instant();
            let Some((transmit, id)) = self.hosts[host].node.poll_transmit(now, segments, &mut buffer) else {
                break;
            };
            any = true;
            if transmit.length != buffer.len() || buffer.is_empty() || buffer.len() > 65_507 {
                return self.fail(9, format!("a batch of {} bytes says {}", buffer.len(), transmit.length));
            }
            if buffer.len().div_ceil(transmit.segment_size.max(1)) > segments {
                return self.fail(9, "more segments than asked for");
            }
            if turn > 10_000 {
                return self.fail(9, "an engine sends without end");
            }
            self.transmit(host, &transmit, id, &buffer)?;
        }
        self.buffer = buffer;
        if any { self.after(host) } else { Ok(()) }
    }

    fn transmit(&mut self, host: usize, transmit: &Transmit, id: u16, buffer: &[u8]) -> Checked {
        let Some(index) = self.by_number.get(&(host, transmit.qpn.get())).copied() else {
            return self.fail(7, "a queue pair that is gone sends");
        };
        let endpoint = &self.endpoints[index];
        let to = self.endpoints[endpoint.peer].host;
        let destination = SocketAddr::new(self.hosts[to].address, 4791);
        if transmit.destination != destination
            || transmit.source != self.hosts[host].address
            || transmit.source_port != endpoint.source_port
        {
            return self.fail(7, "a packet goes elsewhere, or comes from elsewhere");
        }
        let now = self.now;
        for (segment, bytes) in buffer.chunks(transmit.segment_size).enumerate() {
            let Ok(packet) = Packet::new_checked(bytes) else {
                return self.fail(7, "an engine sends no packet");
            };
            if self.scenario.trace {
                eprintln!("{:>15} from {host} {packet}", self.now);
            }
            let endpoint = &mut self.endpoints[index];
            let here = &self.hosts[host];
            let checked = if packet.opcode().is_request() {
                if endpoint.stage == Stage::Error {
                    Err("a queue pair in ERR sends a request".to_owned())
                } else {
                    endpoint.requester.on_request_sent(&packet, &here.shadows, now)
                }
            } else if packet.opcode().is_response() {
                endpoint.responder.on_response_sent(&packet, &here.shadows, &here.openings, now)
            } else {
                Ok(())
            };
            if let Err(what) = checked {
                return self.fail(7, format!("{what} ({})", packet.opcode().name()));
            }
            let mut copy = self.network.buffer();
            copy.extend_from_slice(bytes);
            let index = segment as u16;
            let datagram = Datagram {
                bytes: copy,
                source: SocketAddr::new(transmit.source, transmit.source_port),
                destination: transmit.destination,
                ecn: transmit.traffic_class & 3,
                id: id.wrapping_add(index),
                // The upper byte leads it to its host.
                segment: (to as u16) << 8 | index,
                origin: Origin::Genuine,
                original: None,
            };
            self.network.send(now, host, to, datagram);
        }
        Ok(())
    }

    /// The host to which a datagram was sent, whatever its address has become on the way.
    pub(super) fn host_of(&self, datagram: &Datagram) -> Option<usize> {
        let host = usize::from(datagram.segment >> 8);
        (host < self.hosts.len()).then_some(host)
    }
}
