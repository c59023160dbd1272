//! Small qcow2 images, made in memory: for tests, here and elsewhere.

use crate::error::Qcow2Error;

/// What an image is to be like.
#[derive(Clone, Debug)]
pub struct Sample<'a> {
    /// 2 or 3.
    pub version: u32,
    /// Of a cluster's size.
    pub cluster_bits: u32,
    /// The disk's, bytes.
    pub size: u64,
    /// A backing file's name, and its format.
    pub backing: Option<(&'a str, Option<&'a str>)>,
    /// Clusters of the disk that the image has, by their numbers, and what is in them, in full.
    pub clusters: Vec<(u64, Vec<u8>)>,
}

impl Sample<'_> {
    /// An empty one of version 3 with clusters of 64 KiB.
    pub fn new(size: u64) -> Sample<'static> {
        Sample { version: 3, cluster_bits: 16, size, backing: None, clusters: Vec::new() }
    }

    fn header(&self, l1: (u64, u64), refcounts: u64) -> Vec<u8> {
        let mut bytes = b"QFI\xfb".to_vec();
        let u32s =
            |bytes: &mut Vec<u8>, all: &[u32]| all.iter().for_each(|it| bytes.extend(it.to_be_bytes()));
        let u64s =
            |bytes: &mut Vec<u8>, all: &[u64]| all.iter().for_each(|it| bytes.extend(it.to_be_bytes()));
        let name = self.backing.map_or("", |(name, _)| name);
        let at = if name.is_empty() { 0 } else { 160 };
        u32s(&mut bytes, &[self.version]);
        u64s(&mut bytes, &[at]);
        u32s(&mut bytes, &[u32::try_from(name.len()).unwrap_or_default(), self.cluster_bits]);
        u64s(&mut bytes, &[self.size]);
        u32s(&mut bytes, &[0, u32::try_from(l1.1).unwrap_or(u32::MAX)]);
        u64s(&mut bytes, &[l1.0, refcounts]);
        u32s(&mut bytes, &[1, 0]);
        u64s(&mut bytes, &[0]);
        if self.version > 2 {
            u64s(&mut bytes, &[0, 0, 0]);
            // Reference counts of 16 bits, and this header's length.
            u32s(&mut bytes, &[4, 104]);
        }
        if let Some((_, Some(format))) = self.backing {
            u32s(&mut bytes, &[0xe279_2aca, u32::try_from(format.len()).unwrap_or_default()]);
            bytes.extend(format.bytes());
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.resize(160, 0);
        bytes.extend(name.bytes());
        bytes
    }

    /// The image's file.
    ///
    /// # Errors
    /// [`Qcow2Error::Damaged`]: it is larger than one made here can be.
    pub fn build(&self) -> Result<Vec<u8>, Qcow2Error> {
        let (cluster, per_table) = (1u64 << self.cluster_bits, (1u64 << self.cluster_bits) / 8);
        let entries = self.size.div_ceil(cluster * per_table);
        let mut tables: Vec<u64> = self.clusters.iter().map(|(number, _)| number / per_table).collect();
        tables.sort_unstable();
        tables.dedup();
        // Header, table of reference counts, one block of them; the first level, the second, the disk's clusters.
        let l1 = 3;
        let second = l1 + (entries * 8).div_ceil(cluster);
        let data = second + tables.len() as u64;
        let all = data + self.clusters.len() as u64;
        if all > cluster / 2 || all * cluster > 1 << 30 {
            return Err(Qcow2Error::Damaged("a sample is not that large"));
        }
        let bytes = usize::try_from(all * cluster).unwrap_or_default();
        let mut image = vec![0; bytes];
        let mut put = |at: u64, bytes: &[u8]| {
            let at = usize::try_from(at).unwrap_or_default();
            image[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &self.header((l1 * cluster, entries), cluster));
        put(cluster, &(2 * cluster).to_be_bytes());
        for number in 0..all {
            put(2 * cluster + 2 * number, &1u16.to_be_bytes());
        }
        // One that is used once says so.
        let copied = 1u64 << 63;
        for (index, table) in (second..).zip(&tables) {
            put(l1 * cluster + 8 * table, &(copied | (index * cluster)).to_be_bytes());
        }
        for (index, (number, content)) in (data..).zip(&self.clusters) {
            let table = tables.binary_search(&(number / per_table)).unwrap_or_default() as u64;
            let entry = (second + table) * cluster + 8 * (number % per_table);
            put(entry, &(copied | (index * cluster)).to_be_bytes());
            put(index * cluster, content);
        }
        Ok(image)
    }
}
