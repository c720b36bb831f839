//! A simulated host: an engine, its memory, and what the model knows of both.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use secure_rdma_rdma::{Access, Memory, MemoryWindow, RKey};
use secure_rdma_soft::engine::{Config, Engine, ReceiveQueueId, WindowId};

use super::memory::{Shadow, Shadows};
use super::model::{Habits, Model};
use super::node::Node;
use super::random::{Random, Seeded};
use super::requests::Receive;
use super::responder::Opening;
use super::scenario::{Fault, Scenario};

/// Index of the region that has every remote right.
pub const OPEN: usize = 0;
/// Of the one without any, to which windows are bound.
pub const CLOSED: usize = 1;

/// Rights of a region that the peer may do everything with.
pub const EVERYTHING: Access =
    Access::LOCAL_WRITE.union(Access::REMOTE_WRITE).union(Access::REMOTE_READ).union(Access::REMOTE_ATOMIC);

/// Bytes of each region.
pub const REGION: usize = 65_536;

/// A memory window of the simulation.
#[derive(Debug)]
pub struct Window {
    pub id: WindowId,
}

impl MemoryWindow for Window {
    fn next_key(&self) -> RKey {
        unreachable!("the simulation asks the engine")
    }

    fn as_any(&self) -> &dyn Any {
        &self.id
    }
}

/// What a window is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowUse {
    Free,
    /// A bind is posted.
    Binding,
    Bound(u32),
    /// An invalidation is posted, here or by the peer.
    Ending(u32),
}

/// A window of a host.
pub struct Held {
    pub window: Arc<Window>,
    pub state: WindowUse,
    /// The endpoint for which it is not free.
    pub owner: usize,
}

/// A host with an engine.
pub struct Host {
    pub node: Node,
    /// The window and the interval of ACKs that the model holds it to.
    pub max_window: u32,
    pub ack_interval: u32,
    /// NAKs for missing packets in a second, likewise.
    pub max_nak_rate: u32,
    pub address: IpAddr,
    pub shadows: Shadows,
    pub openings: HashMap<u32, Opening>,
    pub shared: Option<(ReceiveQueueId, VecDeque<Receive>)>,
    pub windows: Vec<Held>,
    /// Index of the region that can only be read.
    pub readable: usize,
    /// How many segments one transmission may have.
    pub segments: usize,
    /// What ranges posted binds will open: by R_Key.
    pub binding: HashMap<u32, Opening>,
}

impl Host {
    pub fn new(scenario: &Scenario, index: usize, address: IpAddr) -> Self {
        let mut random = scenario.random(100 + index as u64);
        let config = config(scenario, &mut random);
        let (mut max_window, mut ack_interval) = (config.max_window, config.ack_interval);
        let mut max_nak_rate = config.max_nak_rate;
        let habits = random.pick(&[Habits::Rxe, Habits::Hfi1]);
        let mut node = if index == 1 && scenario.has(Fault::OtherPeer) {
            (max_window, ack_interval) = (Habits::WINDOW, Habits::ACK_INTERVAL);
            max_nak_rate = u32::MAX;
            Node::Model(Box::new(Model::new(habits, scenario.random(300 + index as u64))))
        } else {
            let entropy = Arc::new(Seeded::new(scenario.seed, 200 + index as u64));
            let mut engine = Engine::new(config, entropy).unwrap();
            engine.set_watched(scenario.random(400 + index as u64).pick(&[false, true]));
            Node::Engine(Box::new(engine))
        };
        let mut shadows = Shadows::default();
        let mut openings = HashMap::new();
        let rights = [
            EVERYTHING | Access::MEMORY_WINDOW_BIND,
            Access::LOCAL_WRITE | Access::MEMORY_WINDOW_BIND,
            Access::REMOTE_READ | Access::MEMORY_WINDOW_BIND,
        ];
        for (region, access) in rights.into_iter().enumerate() {
            let memory = Arc::new(Memory::allocate(REGION).unwrap());
            let keys = node.register(Arc::clone(&memory), access);
            let bytes = Shadow::pattern(REGION, &mut random);
            shadows.regions.push(Shadow::new(&memory, bytes, &keys, access));
            if access.intersects(EVERYTHING - Access::LOCAL_WRITE) {
                let opening =
                    Opening { region, offset: 0, length: REGION, access, bound: None, window: None };
                openings.insert(keys.rkey.expose(), opening);
            }
        }
        let (mut shared, mut windows) = (None, Vec::new());
        if let Some(engine) = node.engine() {
            if scenario.has(Fault::SharedReceives) {
                shared = Some((engine.create_receive_queue(64).unwrap(), VecDeque::new()));
            }
            let count = if scenario.has(Fault::Windows) { 4 } else { 0 };
            windows.extend((0..count).map(|_| {
                let window = Arc::new(Window { id: engine.create_window() });
                Held { window, state: WindowUse::Free, owner: 0 }
            }));
        }
        let segments = match scenario.has(Fault::NoSegmentation) {
            true => 1,
            false => random.pick(&[2, 15, 64]),
        };
        let readable = shadows.regions.len() - 1;
        Self {
            node,
            max_window,
            ack_interval,
            max_nak_rate,
            address,
            shadows,
            openings,
            shared,
            windows,
            readable,
            segments,
            binding: HashMap::new(),
        }
    }

    /// Whether it has rxe's habits.
    pub fn is_rxe(&self) -> bool {
        matches!(&self.node, Node::Model(model) if model.habits == Habits::Rxe)
    }

    /// The binding of a window has ended.
    pub fn freed(&mut self, rkey: u32) {
        for held in &mut self.windows {
            if matches!(held.state, WindowUse::Bound(bound) | WindowUse::Ending(bound) if bound == rkey) {
                held.state = WindowUse::Free;
            }
        }
    }

    /// A queue pair forgets everything: the bindings on it end.
    pub fn forget(&mut self, endpoint: usize) {
        self.openings.retain(|_, opening| opening.bound != Some(endpoint));
        self.binding.retain(|_, opening| opening.bound != Some(endpoint));
        for held in self.windows.iter_mut().filter(|held| held.owner == endpoint) {
            held.state = WindowUse::Free;
        }
    }

    /// Ends the region that can only be read, and registers another in its place. Answers the key that opens nothing
    /// any more.
    pub fn replace_readable(&mut self, random: &mut Random) -> u32 {
        let old = &mut self.shadows.regions[self.readable];
        old.alive = false;
        let (rkey, access) = (old.rkey, old.access);
        self.node.deregister(old.lkey().unwrap());
        self.openings.remove(&rkey);
        let memory = Arc::new(Memory::allocate(REGION).unwrap());
        let keys = self.node.register(Arc::clone(&memory), access);
        let bytes = Shadow::pattern(REGION, random);
        self.readable = self.shadows.regions.len();
        self.shadows.regions.push(Shadow::new(&memory, bytes, &keys, access));
        let opening =
            Opening { region: self.readable, offset: 0, length: REGION, access, bound: None, window: None };
        self.openings.insert(keys.rkey.expose(), opening);
        rkey
    }
}

fn config(scenario: &Scenario, random: &mut Random) -> Config {
    let initial_window = random.pick(&[2, 16, 64, 128]);
    let max_window = random.pick(&[64, 128, 128]).max(initial_window);
    let mut config = Config {
        initial_window,
        max_window,
        ack_interval: random.pick(&[1, 8, 32, 32]),
        adaptive_timeout: !scenario.has(Fault::FixedTimeout),
        min_timeout: Duration::from_millis(random.pick(&[2, 2, 20])),
        ecn: scenario.has(Fault::Congestion),
        ack_hold: Duration::from_micros(scenario.random(500).pick(&[20, 1000])),
        ..Config::default()
    };
    if scenario.has(Fault::SmallBuffer) {
        config.receive_buffer = Some(random.pick(&[20_000, 50_000, 212_992]));
    }
    if scenario.has(Fault::NakLimit) {
        config.max_nak_rate = random.pick(&[1, 5, 50]);
    }
    plant(&mut config, scenario.defect);
    config
}

/// Plants a defect into the engine, in builds that can.
#[cfg(feature = "defects")]
fn plant(config: &mut Config, defect: Option<u8>) {
    config.defect = defect.map(|defect| secure_rdma_soft::engine::Defect::ALL[usize::from(defect)]);
}

#[cfg(not(feature = "defects"))]
fn plant(_: &mut Config, defect: Option<u8>) {
    assert!(defect.is_none(), "this build has no defects to plant");
}
