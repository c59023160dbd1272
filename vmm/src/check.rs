pub fn main(_json: bool, _probe: Option<&str>) -> u8 {
    0
}
