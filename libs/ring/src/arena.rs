//! Ids with a generation, and the tables they point into.
//!
//! Invariant: an id handed out once never reaches another object. Retiring an object changes its
//! slot's generation at once, so its ids are dead while the kernel may still hold operations on it;
//! the slot itself is reused only after `remove`.

macro_rules! id {
    ($(#[$m:meta])* $name:ident) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name {
            pub(crate) index: u32,
            pub(crate) gen: u32,
        }
        impl $name {
            pub(crate) fn from_parts((index, gen): (u32, u32)) -> Self {
                $name { index, gen }
            }
            /// Small integer, unique among the living; reused after its object is gone.
            pub fn index(self) -> usize {
                self.index as usize
            }
            /// The whole id as one integer, never used again by this reactor.
            pub fn as_u64(self) -> u64 {
                (u64::from(self.gen) << 32) | u64::from(self.index)
            }
        }
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}:{}.{}", stringify!($name), self.index, self.gen)
            }
        }
    };
}
id!(
    /// A connection of one reactor.
    ConnId
);
id!(
    /// A listening socket of one reactor.
    ListenerId
);
id!(
    /// An open file or block device of one reactor.
    FileId
);

struct Slot<T> {
    gen: u32,
    value: Option<T>,
}

/// A table of `T` addressed by (index, generation).
pub(crate) struct Arena<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Arena<T> {
    pub(crate) fn new() -> Arena<T> {
        Arena { slots: Vec::new(), free: Vec::new() }
    }

    /// Objects present, the retired ones included.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(crate) fn insert(&mut self, value: T) -> (u32, u32) {
        if let Some(index) = self.free.pop() {
            if let Some(slot) = self.slots.get_mut(index as usize) {
                assert!(slot.value.is_none(), "a free slot is empty");
                slot.value = Some(value);
                return (index, slot.gen);
            }
        }
        let index = self.slots.len() as u32;
        self.slots.push(Slot { gen: 1, value: Some(value) });
        (index, 1)
    }

    /// The object, unless the id is stale.
    pub(crate) fn get(&mut self, index: u32, gen: u32) -> Option<&mut T> {
        match self.slots.get_mut(index as usize) {
            Some(s) if s.gen == gen => s.value.as_mut(),
            _ => None,
        }
    }

    /// As `get`, without the right to change it.
    pub(crate) fn peek(&self, index: u32, gen: u32) -> Option<&T> {
        match self.slots.get(index as usize) {
            Some(s) if s.gen == gen => s.value.as_ref(),
            _ => None,
        }
    }

    /// The object in a slot, retired or not: for completions, whose operations keep the slot.
    pub(crate) fn raw(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize).and_then(|s| s.value.as_mut())
    }

    /// The generation the living ids of this slot carry.
    pub(crate) fn gen(&self, index: u32) -> u32 {
        self.slots.get(index as usize).map_or(0, |s| s.gen)
    }

    /// Makes every id given out for this slot stale. The object stays until `remove`.
    pub(crate) fn retire(&mut self, index: u32) {
        if let Some(s) = self.slots.get_mut(index as usize) {
            s.gen = s.gen.wrapping_add(1);
        }
    }

    /// Takes a retired object out; the slot may be reused.
    pub(crate) fn remove(&mut self, index: u32) -> Option<T> {
        let value = self.slots.get_mut(index as usize).and_then(|s| s.value.take());
        if value.is_some() {
            self.free.push(index);
        }
        value
    }

    /// All objects present.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|s| s.value.as_ref())
    }

    /// Indices of all objects present.
    pub(crate) fn indices(&self) -> Vec<u32> {
        (0..self.slots.len() as u32)
            .filter(|&i| self.slots.get(i as usize).is_some_and(|s| s.value.is_some()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_never_reaches_the_next_object_in_its_slot() {
        let mut a = Arena::new();
        let (i, g) = a.insert("first");
        a.retire(i);
        assert!(a.get(i, g).is_none(), "retired: the id is dead");
        assert_eq!(a.raw(i), Some(&mut "first"), "but the object is still here");
        assert_eq!(a.remove(i), Some("first"));
        let (j, h) = a.insert("second");
        assert_eq!(i, j, "the slot is reused");
        assert!(a.get(i, g).is_none());
        assert_eq!(a.get(j, h), Some(&mut "second"));
        assert_eq!(a.len(), 1);
    }
}
