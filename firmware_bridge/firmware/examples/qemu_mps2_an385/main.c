/* A whole sensor: samples three axes at a steady rate, sends them in frames of 64, says who it is when asked.
 *
 * The structure is that of a real one. The tick stands for the interrupt of an accelerometer whose FIFO has filled up
 * to its watermark, and acceleration() for reading one sample from it; everything else stays.
 *
 *     make                                   builds sensor.elf
 *     make run                               runs it in QEMU, with its UART on the Unix socket /tmp/sensor.sock
 */
#include "board.h"
#include "fedmq_sensor.h"

#ifndef SAMPLE_HZ
#define SAMPLE_HZ 3125 /* divides 1,000,000: a sample takes whole microseconds */
#endif

#ifndef KNOCK
#define KNOCK 2000 /* how hard the knock is, in steps: 0 for a machine that is well */
#endif

/* The FIFO keeps this many samples that nobody has read, and then loses the oldest. */
#ifndef FIFO_DEPTH
#define FIFO_DEPTH 32
#endif

enum { CHANNELS = 3, BLOCK = 64, WATERMARK = 16, SAMPLE_US = 1000000 / SAMPLE_HZ, HELLO_EVERY = 10 * SAMPLE_HZ };

static const fedmq_channel channels[CHANNELS] = {
    {"x", "m/s2", 0.0f, 1.0f}, {"y", "m/s2", 0.0f, 1.0f}, {"z", "m/s2", 0.0f, 1.0f}};

static const fedmq_identity identity = {
    {'A', 'N', '3', '8', '5'}, "qemu-motor", "1.0.0", SAMPLE_HZ * 1000u, 0.03824f, CHANNELS, channels};

static volatile uint32_t made; /* samples that have gone into the FIFO */
static volatile uint8_t asked; /* somebody wants a hello */

static fedmq_head samples_head = {1, 0, 0}; /* boot 0: this board has neither flash nor random numbers */
static fedmq_head hello_head = {1, 0, 0};

static fedmq_decoder decoder;

void on_tick(void)
{
    made += WATERMARK;
}

void on_byte(uint8_t byte)
{
    if (fedmq_decode(&decoder, byte) == FEDMQ_FRAME && fedmq_asked(&decoder, hello_head.sensor)) {
        asked = 1;
    }
}

/* A shaft at 1/64 of the sampling rate, its second harmonic on z, a knock every 500 samples, and noise of a hash. */
static int16_t acceleration(uint32_t n, int axis)
{
    static const int16_t sine[64] = {
        0,    39,   78,   116,  153,  189,  222,  254,  283,  309,  333,  353,  370,  383,  392,  398,
        400,  398,  392,  383,  370,  353,  333,  309,  283,  254,  222,  189,  153,  116,  78,   39,
        0,    -39,  -78,  -116, -153, -189, -222, -254, -283, -309, -333, -353, -370, -383, -392, -398,
        -400, -398, -392, -383, -370, -353, -333, -309, -283, -254, -222, -189, -153, -116, -78,  -39};
    uint32_t hash = (n * 3 + (uint32_t)axis) * 2654435761u;
    int32_t value = sine[(n + 16u * (uint32_t)axis) & 63] + (int32_t)(hash >> 26) - 32;
    if (axis == 2) {
        value += sine[(2 * n) & 63] / 2 + (n % 500 < 4 ? KNOCK : 0);
    }
    return (int16_t)value;
}

static void say_hello(uint32_t n)
{
    static uint8_t out[FEDMQ_HELLO_ENCODED(CHANNELS)];
    size_t length = fedmq_encode_hello(out, sizeof out, &hello_head, &identity, (uint64_t)n * SAMPLE_US);
    board_send(out, length);
    hello_head.sequence++;
}

int main(void)
{
    static uint8_t in[FEDMQ_OVERHEAD], out[FEDMQ_SAMPLES_ENCODED(CHANNELS, BLOCK)];
    static const uint8_t delimiter = 0;
    fedmq_encoder encoder;
    uint32_t taken = 0, in_block = 0;
    uint32_t hello_at = HELLO_EVERY;
    uint8_t overrun = 0;

    fedmq_decoder_start(&decoder, in, sizeof in);
    board_start(WATERMARK * SAMPLE_US);
    board_send(&delimiter, 1); /* ends whatever the line had picked up */
    say_hello(0);

    for (;;) {
        if (in_block == 0 && (asked || (int32_t)(taken - hello_at) >= 0)) {
            asked = 0;
            hello_at = taken + HELLO_EVERY;
            say_hello(taken);
        }
        if (taken == made) {
            board_sleep();
            continue;
        }
        if (made - taken > FIFO_DEPTH) {
            taken = made - FIFO_DEPTH;
            overrun = 1;
            in_block = 0; /* a block must be whole: what it has begun with is lost, too */
        }
        if (in_block == 0) {
            fedmq_samples block = {(uint64_t)taken * SAMPLE_US, SAMPLE_HZ * 1000u, 0.03824f, CHANNELS, overrun, BLOCK};
            fedmq_begin_samples(&encoder, out, sizeof out, &samples_head, &block);
            overrun = 0;
        }
        for (int axis = 0; axis < CHANNELS; axis++) {
            fedmq_put_i16(&encoder, acceleration(taken, axis));
        }
        taken++;
        if (++in_block == BLOCK) {
            board_send(out, fedmq_end(&encoder));
            samples_head.sequence++;
            in_block = 0;
        }
    }
}
