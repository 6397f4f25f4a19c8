//! Which pages a load works on.

use crate::rng::Rng;

/// Pages of an extent of the volume, the unit of placement.
const EXTENT_PAGES: u64 = 256;

/// Groups of neighbouring pages, one group in each of a row of extents or all in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// First page of the first group.
    pub first: u64,
    pub groups: u64,
    pub pages_per_group: u64,
    /// Pages from one group's beginning to the next one's.
    pub stride: u64,
}

impl Area {
    /// The first `pages` pages of the volume.
    pub fn hot(pages: u64) -> Area {
        Area { first: 0, groups: 1, pages_per_group: pages.max(1), stride: 0 }
    }
    /// `groups` groups (1 to the volume's size in MiB minus 1) of up to 256 pages, each lying across the boundary
    /// of two extents: all placement groups take part, and requests go over boundaries.
    pub fn spread(groups: u64, pages_per_group: u64) -> Area {
        let pages_per_group = pages_per_group.clamp(1, EXTENT_PAGES);
        let first = EXTENT_PAGES - pages_per_group.div_ceil(2);
        Area { first, groups: groups.max(1), pages_per_group, stride: EXTENT_PAGES }
    }
    /// Moved by a number of extents (MiB).
    pub fn shifted(self, extents: u64) -> Area {
        Area { first: self.first + extents * EXTENT_PAGES, ..self }
    }
    /// All its pages.
    pub fn pages(self) -> impl Iterator<Item = u64> {
        (0..self.groups).flat_map(move |g| {
            (0..self.pages_per_group).map(move |p| self.first + g * self.stride + p)
        })
    }
    /// The page after its last.
    pub fn end(&self) -> u64 {
        self.first + (self.groups - 1) * self.stride + self.pages_per_group
    }
    /// A random run of 1 to `most` pages inside one group.
    pub fn pick(&self, rng: &mut Rng, most: u64) -> (u64, u64) {
        let most = most.clamp(1, self.pages_per_group);
        let count = if rng.below(10) < 7 { 1 } else { 1 + rng.below(most) };
        let group = self.first + rng.below(self.groups) * self.stride;
        (group + rng.below(self.pages_per_group - count + 1), count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_stay_inside_the_area_and_reach_all_of_it() {
        for area in [Area::hot(5), Area::spread(7, 6), Area::spread(3, 256).shifted(2)] {
            let all: std::collections::BTreeSet<u64> = area.pages().collect();
            let mut hit = std::collections::BTreeSet::new();
            let mut rng = Rng::new(1);
            for _ in 0..20_000 {
                let (first, count) = area.pick(&mut rng, 4);
                hit.extend(first..first + count);
            }
            assert_eq!(hit, all);
            assert_eq!(all.last().map(|l| l + 1), Some(area.end()));
        }
        assert!(
            Area::spread(2, 6).pages().any(|p| p == 255)
                && Area::spread(2, 6).pages().any(|p| p == 256)
        );
    }
}
