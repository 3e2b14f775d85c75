/* See fedmq_model.h. */
#include "fedmq_model.h"

enum { HEADER = 44, UNIT = 9, CRC = 4, LIMIT = 127, SHIFT_MAX = 62, FRACTION_MAX = 30 };

/* An image may lie anywhere: nothing in it is aligned. */
static uint32_t u16_at(const uint8_t *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8;
}

static uint32_t u32_at(const uint8_t *bytes)
{
    return u16_at(bytes) | u16_at(bytes + 2) << 16;
}

/* Two's complement, without a conversion that C leaves to the compiler. */
static int32_t i32_at(const uint8_t *bytes)
{
    uint32_t bits = u32_at(bytes);
    return bits <= INT32_MAX ? (int32_t)bits : -(int32_t)~bits - 1;
}

static int32_t i16_at(const uint8_t *bytes)
{
    int32_t bits = (int32_t)u16_at(bytes);
    return bits < 0x8000 ? bits : bits - 0x10000;
}

uint32_t fedmq_crc32(const uint8_t *bytes, size_t length)
{
    static const uint32_t table[16] = {
        0x00000000, 0x1DB71064, 0x3B6E20C8, 0x26D930AC, 0x76DC4190, 0x6B6B51F4, 0x4DB26158, 0x5005713C,
        0xEDB88320, 0xF00F9344, 0xD6D6A3E8, 0xCB61B38C, 0x9B64C2B0, 0x86D3D2D4, 0xA00AE278, 0xBDBDF21C};
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < length; i++) {
        crc ^= bytes[i];
        crc = (crc >> 4) ^ table[crc & 15];
        crc = (crc >> 4) ^ table[crc & 15];
    }
    return ~crc;
}

/* value * multiplier / 2^shift, rounded half away from zero, within low to 127. The product fits: multipliers are below
   2^31 beside accumulators below 2^31, and below 2^30 beside samples less their offset, which are below 2^32. */
static int8_t rescale(int64_t value, const uint8_t *unit, int32_t low)
{
    int64_t product = value * i32_at(unit + 4);
    int64_t half = (int64_t)1 << (unit[8] - 1);
    int64_t scaled = product < 0 ? -((half - product) >> unit[8]) : (half + product) >> unit[8];
    return (int8_t)(scaled < low ? (int64_t)low : scaled > LIMIT ? (int64_t)LIMIT : scaled);
}

/* --- checking ----------------------------------------------------------------------------------------------------- */

static int unit_holds(const uint8_t *unit, uint32_t multipliers)
{
    return u32_at(unit + 4) < multipliers && unit[8] >= 1 && unit[8] <= SHIFT_MAX;
}

/* One row, its weights |inputs| bytes: no input can make its sum overflow. */
static int row_holds(const uint8_t *row, uint32_t inputs)
{
    const int8_t *weights = (const int8_t *)(row + UNIT);
    int32_t bias = i32_at(row);
    /* Up to 2^31 + 65,535 * 128 * 128, which fits: no more is added to what is too much already. */
    uint32_t most = bias < 0 ? 0u - (uint32_t)bias : (uint32_t)bias;
    for (uint32_t i = 0; i < inputs; i++) {
        most += 128u * (uint32_t)(weights[i] < 0 ? -weights[i] : weights[i]);
    }
    return most <= INT32_MAX && unit_holds(row, 1u << 31);
}

fedmq_model_fault fedmq_model_open(fedmq_model *m, const uint8_t *image, size_t length)
{
    if (length < HEADER + CRC || image[0] != 'F' || image[1] != 'Q' || image[2] != 'M' ||
        image[3] != 'I' || image[4] != FEDMQ_MODEL_FORMAT || u32_at(image + 8) != length) {
        return FEDMQ_MODEL_MALFORMED;
    }
    m->image = image;
    m->id = u32_at(image + length - CRC);
    if (fedmq_crc32(image, length - CRC) != m->id) {
        return FEDMQ_MODEL_CHECKSUM;
    }
    m->result = image[5];
    m->layers = image[6];
    m->fraction_bits = image[7];
    m->version = u32_at(image + 12);
    m->rate_mhz = u32_at(image + 24);
    m->sample_scale = u32_at(image + 28);
    m->result_scale = u32_at(image + 32);
    m->channels = image[36];
    m->samples = (uint16_t)u16_at(image + 38);
    m->scaler_count = (uint16_t)u16_at(image + 40);
    m->hop = (uint16_t)u16_at(image + 42);

    /* |left|: bytes that nothing has been found in yet. It never goes below 0. */
    size_t left = length - HEADER - CRC;
    const uint8_t *sizes = image + HEADER;
    size_t table = 2u * (m->layers + 1u);
    if (m->result > FEDMQ_ANOMALY || m->layers < 1 || m->layers > FEDMQ_MODEL_LAYERS_MAX ||
        m->fraction_bits > FRACTION_MAX || image[37] != 0 || left < table) {
        return FEDMQ_MODEL_MALFORMED;
    }
    left -= table;
    m->inputs = u16_at(sizes);
    m->outputs = u16_at(sizes + 2u * m->layers);
    if (m->inputs < 1 || m->channels < 1 || m->channels > 16 || m->inputs != (uint32_t)m->channels * m->samples ||
        m->hop < m->samples || (m->scaler_count != 1 && m->scaler_count != m->inputs) ||
        left < (size_t)UNIT * m->scaler_count ||
        (m->result == FEDMQ_ANOMALY && (m->inputs != m->outputs || m->inputs > INT32_MAX / (255 * 255)))) {
        return FEDMQ_MODEL_MALFORMED;
    }
    left -= (size_t)UNIT * m->scaler_count;
    m->scalers = sizes + table;
    for (uint32_t i = 0; i < m->scaler_count; i++) {
        if (!unit_holds(m->scalers + UNIT * i, 1u << 30)) {
            return FEDMQ_MODEL_MALFORMED;
        }
    }
    const uint8_t *row = m->rows = m->scalers + (size_t)UNIT * m->scaler_count;
    m->widest = 0;
    for (uint32_t layer = 0; layer < m->layers; layer++) {
        uint32_t inputs = u16_at(sizes + 2 * layer), outputs = u16_at(sizes + 2 * layer + 2);
        m->widest = outputs > m->widest ? outputs : m->widest;
        if (outputs < 1) {
            return FEDMQ_MODEL_MALFORMED;
        }
        for (uint32_t o = 0; o < outputs; o++) {
            if (left < UNIT + inputs || !row_holds(row, inputs)) {
                return FEDMQ_MODEL_MALFORMED;
            }
            left -= UNIT + inputs;
            row += UNIT + inputs;
        }
    }
    m->test = row;
    m->work = m->inputs + 2 * m->widest;
    return left == 2u * m->inputs + m->outputs + 4u ? FEDMQ_MODEL_OK : FEDMQ_MODEL_MALFORMED;
}

/* --- running ------------------------------------------------------------------------------------------------------ */

int8_t fedmq_model_input(const fedmq_model *m, uint32_t i, int16_t sample)
{
    const uint8_t *scaler = m->scalers + (m->scaler_count == 1 ? 0 : UNIT * i);
    int64_t fixed = (int64_t)sample * ((int64_t)1 << m->fraction_bits);
    fixed = fixed < INT32_MIN ? (int64_t)INT32_MIN : fixed > INT32_MAX ? (int64_t)INT32_MAX : fixed;
    return rescale(fixed - i32_at(scaler), scaler, -LIMIT);
}

const int8_t *fedmq_model_run(const fedmq_model *m, int8_t *work)
{
    const uint8_t *sizes = m->image + HEADER, *row = m->rows;
    const int8_t *in = work;
    for (uint32_t layer = 0; layer < m->layers; layer++) {
        uint32_t inputs = u16_at(sizes + 2 * layer), outputs = u16_at(sizes + 2 * layer + 2);
        int8_t *out = work + m->inputs + (layer & 1) * m->widest;
        int32_t low = layer + 1u < m->layers ? 0 : -LIMIT; /* ReLU behind every layer but the last */
        for (uint32_t o = 0; o < outputs; o++) {
            int32_t sum = i32_at(row);
            const int8_t *weights = (const int8_t *)(row + UNIT);
            for (uint32_t i = 0; i < inputs; i++) {
                sum += (int32_t)weights[i] * in[i];
            }
            out[o] = rescale(sum, row, low);
            row += UNIT + inputs;
        }
        in = out;
    }
    return in;
}

int32_t fedmq_model_score(const fedmq_model *m, const int8_t *work, const int8_t *out)
{
    int32_t sum = 0;
    for (uint32_t i = 0; m->result == FEDMQ_ANOMALY && i < m->inputs; i++) {
        int32_t apart = (int32_t)work[i] - out[i];
        sum += apart * apart;
    }
    return sum;
}

fedmq_model_fault fedmq_model_self_test(const fedmq_model *m, int8_t *work)
{
    const uint8_t *result = m->test + 2u * m->inputs + m->outputs;
    const int8_t *expected = (const int8_t *)(m->test + 2u * m->inputs);
    for (uint32_t i = 0; i < m->inputs; i++) {
        work[i] = fedmq_model_input(m, i, (int16_t)i16_at(m->test + 2 * i));
    }
    const int8_t *out = fedmq_model_run(m, work);
    for (uint32_t o = 0; o < m->outputs; o++) {
        if (out[o] != expected[o]) {
            return FEDMQ_MODEL_SELF_TEST;
        }
    }
    return fedmq_model_score(m, work, out) == i32_at(result) ? FEDMQ_MODEL_OK : FEDMQ_MODEL_SELF_TEST;
}
