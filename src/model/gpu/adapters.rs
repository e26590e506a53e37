//! The adapters on the device: who is there, who comes, and what a step finds of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::{Arc, Weak},
};

use candle_core::{Result, bail};

use super::{
    adapter::{self, Laid, Shape, lay},
    carrier::{Arrival, Carrier, Order},
    residents::{Residents, Wish},
    run::MAX_RANK,
};
use crate::{
    kernels::{
        cuda::{Gpu, LinearMaps, LoraStack, MAX_SITES, Region, Slice, bytes_of},
        panels::Encoding,
    },
    lora::{Adapter, Digest},
};

/// So many bytes of adapters' memory are worth an entry of the tables.
const BYTES_OF_SLOT: usize = 256 << 10;
/// Entries of the tables, at most.
const MOST_SLOTS: usize = 1024;

/// How much room there is for adapters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// For their numbers.
    pub(super) bytes: usize,
    /// Entries of the tables.
    pub(super) slots: usize,
    /// The greatest rank of a site.
    pub(super) rank: usize,
    pub(super) layers: usize,
}

impl Room {
    /// As many entries of the tables as make sense for so many bytes, and enough for a row.
    pub(super) fn new(bytes: usize, rank: usize, layers: usize, parts: usize) -> Self {
        Self { bytes, slots: (bytes / BYTES_OF_SLOT).clamp(parts, MOST_SLOTS), rank, layers }
    }

    /// Bytes of the tables.
    pub(super) fn tables(&self) -> usize {
        let Self { slots, layers, .. } = *self;
        bytes_of::<LoraStack>(slots * adapter::groups(layers))
            + bytes_of::<u64>(slots * adapter::norms(layers))
    }
}

/// The adapters on a device.
#[derive(Debug)]
pub(super) struct Adapters<G: Gpu> {
    /// Before what it copies to.
    carrier: Carrier,
    residents: Residents,
    known: HashMap<Digest, Known>,
    /// Those that have arrived, for others to read.
    arrived: Arc<BTreeSet<Digest>>,
    /// Could not be brought: whoever waits for them is told so.
    broken: BTreeMap<Digest, String>,
    room: Room,
    shape: Shape,
    numbers: Region<G>,
    #[expect(dead_code, reason = "it is there to be dropped")]
    tables: Region<G>,
    /// `[slots, groups]`
    pub(super) stacks: Slice<LoraStack>,
    /// `[slots, norms]`
    pub(super) gains: Slice<u64>,
}

/// An adapter that has a place on the device.
#[derive(Debug)]
struct Known {
    /// Once the host has dropped it, nobody can ask for it any more.
    adapter: Weak<Adapter>,
    /// A head of its own.
    head: Option<(Encoding, LinearMaps)>,
}

/// What has become of an adapter that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    There,
    Coming,
    /// Those that stay leave no room for it.
    NoRoom,
    /// It cannot be brought.
    Lost,
}

impl<G: Gpu> Adapters<G> {
    /// Takes the memory that `room` says.
    pub(super) fn new(gpu: &Arc<G>, room: Room, shapes: [Shape; 2]) -> Result<Self> {
        let [own, carriers] = shapes;
        let mut tables = Region::new(gpu, room.tables())?;
        let stacks = tables.take(room.slots * adapter::groups(room.layers));
        let gains = tables.take(room.slots * adapter::norms(room.layers));
        Ok(Self {
            carrier: Carrier::start(gpu, carriers)?,
            residents: Residents::new(room.bytes, room.slots),
            known: HashMap::new(),
            arrived: Arc::default(),
            broken: BTreeMap::new(),
            room,
            shape: own,
            numbers: Region::new(gpu, room.bytes)?,
            tables,
            stacks,
            gains,
        })
    }

    /// Has the first of `wanted` brought as long as there is room beside what `running` needs, and says who of them is there, and
    /// who cannot be brought, or has a part that cannot. No step is computed meanwhile.
    pub(super) fn prepare(
        &mut self,
        wanted: &[Arc<Adapter>],
        running: &[Arc<Adapter>],
    ) -> Result<(BTreeSet<Digest>, BTreeSet<Digest>)> {
        while let Some(arrival) = self.carrier.arrived() {
            self.arrive(arrival);
        }
        let parts = running.iter().flat_map(Adapter::shared_parts);
        let mut kept: BTreeSet<Digest> = parts.map(|(part, _)| part.digest()).collect();
        self.forget_dropped(&kept);
        let (mut ready, mut full) = (BTreeSet::new(), false);
        for adapter in wanted {
            // What has room only because another waits would take it from that one for ever.
            let standing =
                if full { self.standing(adapter) } else { Some(self.want(adapter, &kept)?) };
            full |= standing == Some(Standing::NoRoom);
            if standing == Some(Standing::There) {
                ready.insert(adapter.digest());
            }
            kept.extend(Adapter::shared_parts(adapter).map(|(part, _)| part.digest()));
        }
        let arrived = self.residents.arrived();
        if *self.arrived != arrived {
            self.arrived = Arc::new(arrived);
        }
        // Whoever asks for one anew gets another try.
        Ok((ready, mem::take(&mut self.broken).into_keys().collect()))
    }

    /// The adapters that are there.
    pub(super) fn arrived(&self) -> Arc<BTreeSet<Digest>> {
        Arc::clone(&self.arrived)
    }

    /// Waits until something has arrived; false where nothing is on its way.
    pub(super) fn settle(&mut self) -> Result<bool> {
        if !self.residents.are_coming() {
            return Ok(false);
        }
        let arrival = self.carrier.wait()?;
        self.arrive(arrival);
        Ok(true)
    }

    /// The slot of an adapter that is no mix and runs in a step, of whose adapters none goes for it.
    pub(super) fn slot(
        &mut self,
        adapter: &Arc<Adapter>,
        of_step: &BTreeSet<Digest>,
    ) -> Result<i32> {
        let digest = adapter.digest();
        loop {
            if let Some(slot) = self.residents.slot(digest) {
                return Ok(i32::try_from(slot).expect("few"));
            }
            if let Some(why) = self.broken.remove(&digest) {
                bail!("adapter {digest} is not on the device: {why}");
            }
            // Nobody is planned before it is there; where it is not all the same, the step waits for it.
            self.want(adapter, of_step)?;
            if !self.broken.contains_key(&digest) && !self.settle()? {
                bail!("adapter {digest} has no room on the device");
            }
        }
    }

    /// The head that an adapter brings.
    pub(super) fn head(&self, adapter: Digest) -> Option<(Encoding, LinearMaps)> {
        self.known.get(&adapter).and_then(|known| known.head)
    }

    /// What is known of an adapter, of which nothing is brought now.
    fn standing(&mut self, adapter: &Arc<Adapter>) -> Option<Standing> {
        let mut parts = Adapter::shared_parts(adapter);
        let there = parts.all(|(part, _)| self.residents.find(part.digest()) == Some(Wish::There));
        there.then_some(Standing::There)
    }

    /// Sees to it that an adapter is there, or comes. None of `kept` goes for it.
    fn want(&mut self, adapter: &Arc<Adapter>, kept: &BTreeSet<Digest>) -> Result<Standing> {
        let mut parts: Vec<&Arc<Adapter>> = Vec::new();
        for (part, _) in Adapter::shared_parts(adapter) {
            if let Some(known) = self.known.get_mut(&part.digest()) {
                known.adapter = Arc::downgrade(part);
            }
            if parts.iter().all(|other| other.digest() != part.digest()) {
                parts.push(part);
            }
        }
        let lost = |digest| self.broken.contains_key(&digest);
        if lost(adapter.digest()) || parts.iter().any(|part| lost(part.digest())) {
            return Ok(Standing::Lost);
        }
        if let Some(standing) = self.standing(adapter) {
            return Ok(standing);
        }
        let laid: Vec<_> = parts.iter().map(|part| lay(part, &self.shape, 0)).collect();
        if let Some(why) = self.too_large(&laid) {
            let digest = adapter.digest();
            tracing::error!(%digest, why, "an adapter cannot be brought to the device");
            self.broken.insert(digest, why);
            return Ok(Standing::Lost);
        }
        let sizes = parts.iter().zip(&laid).map(|(part, laid)| (part.digest(), laid.bytes));
        let sizes: Vec<_> = sizes.collect();
        drop(laid);
        let Some(wishes) = self.residents.want(&sizes, kept) else { return Ok(Standing::NoRoom) };
        for (part, wish) in parts.into_iter().zip(wishes) {
            if let Wish::Bring(place) = wish {
                self.order(part, &place)?;
            }
        }
        Ok(Standing::Coming)
    }

    /// Why adapters that run together could never be there.
    fn too_large(&self, laid: &[Laid<'_>]) -> Option<String> {
        let bytes: usize = laid.iter().map(|laid| laid.bytes).sum();
        let Room { bytes: room, slots, rank, .. } = self.room;
        if bytes > room {
            return Some(format!("it takes {bytes} bytes, and there are {room} for all adapters"));
        }
        if laid.len() > slots {
            return Some(format!("it has {} parts, and there is room for {slots}", laid.len()));
        }
        let sites = laid.iter().flat_map(|laid| &laid.stacks);
        let (mut highest, mut together) = (0, 0);
        for stack in sites {
            let own = stack.sites.iter().map(|site| site.rank).max().unwrap_or(0);
            (highest, together) = (own.max(highest), stack.rank.max(together));
        }
        let fits = |rank: i32, most: usize| usize::try_from(rank).is_ok_and(|rank| rank <= most);
        if !fits(highest, MAX_RANK) || !fits(together, MAX_SITES * rank) {
            return Some(format!("its rank is {highest}, and there is room for {rank}"));
        }
        None
    }

    /// Has an adapter brought to its place.
    fn order(&mut self, adapter: &Arc<Adapter>, place: &super::residents::Place) -> Result<()> {
        let there = self.numbers.all().part(place.bytes.clone());
        let Laid { head, .. } = lay(adapter, &self.shape, there.address());
        let Room { layers, .. } = self.room;
        let (groups, norms) = (adapter::groups(layers), adapter::norms(layers));
        self.known.insert(adapter.digest(), Known { adapter: Arc::downgrade(adapter), head });
        self.carrier.bring(Order {
            adapter: Arc::clone(adapter),
            place: there,
            stacks: self.stacks.part(place.slot * groups..(place.slot + 1) * groups),
            gains: self.gains.part(place.slot * norms..(place.slot + 1) * norms),
        })
    }

    fn arrive(&mut self, Arrival { digest, arrived }: Arrival) {
        match arrived {
            Ok(()) => self.residents.arrive(digest),
            Err(error) => {
                tracing::error!(%digest, %error, "an adapter could not be brought to the device");
                self.residents.forget(digest);
                self.broken.insert(digest, error.to_string());
            }
        }
    }

    /// What the host has dropped is not asked for again: it was deleted, or others took its place there.
    fn forget_dropped(&mut self, kept: &BTreeSet<Digest>) {
        let is_dropped =
            |known: Option<&Known>| known.is_none_or(|known| known.adapter.strong_count() == 0);
        for digest in self.residents.arrived() {
            if !kept.contains(&digest) && is_dropped(self.known.get(&digest)) {
                self.residents.forget(digest);
            }
        }
        let Self { known, residents, .. } = self;
        known.retain(|digest, known| residents.has(*digest) || !is_dropped(Some(known)));
    }
}
