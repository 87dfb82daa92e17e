//! What the fuzz targets share.

/// `data` in pieces of the size that its first byte says, as a network might deliver it.
pub fn in_pieces(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let (size, data) = data.split_first()?;
    Some((data, data.chunks(usize::from(*size).max(1)).collect()))
}
